"""Chat templates: those that loraft brings, and rendering with whatever template is used.

Where the turn's own end mark is no single token of the vocabulary, the tokenizer's end-of-text token ends each
assistant's turn instead, so that the end of an answer is always one token that generation can stop at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from loraft.data.formats import Message
from loraft.errors import DataError

__all__ = ["choose_template", "render"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ END if message['role'] == 'assistant' else '<|im_end|>' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] }}{{ END }}{{ '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


def choose_template(tokenizer: PreTrainedTokenizerBase, setting: str) -> tuple[str | None, tuple[str, ...]]:
    """The template that `data.chat_template` means, and what there is to say about it.

    Args:
        tokenizer: Its own template is used for `auto`.
        setting: auto, chatml, alpaca, or the path of a .jinja file.

    Returns:
        The template's text; None when the tokenizer can end no turn, so that conversations cannot be rendered.

    Raises:
        DataError: The file cannot be read.
    """
    if setting.endswith((".jinja", ".jinja2")):
        return _read(Path(setting)), ()
    own = tokenizer.chat_template
    if setting == "auto" and isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()))
    if setting == "auto" and own:
        return str(own), ()
    name, text = ("alpaca", ALPACA) if setting == "alpaca" else ("chatml", CHATML)
    end = _end_mark(tokenizer)
    if end is None:
        return None, ()
    notes = (
        [f"the tokenizer has no chat template: {name} is used and saved with what is trained"]
        if setting == "auto"
        else []
    )
    if end != "<|im_end|>":
        notes.append(f"the chat template {name} ends each answer with {end}, the tokenizer's own end")
    return text.replace("END", repr(end)), tuple(notes)


def render(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Message], *, open_answer: bool = False
) -> str:
    """The text of a conversation.

    Args:
        tokenizer: Gives the template its special tokens.
        template: The template's text.
        messages: The turns.
        open_answer: End with the header of the answer that is to come.

    Raises:
        DataError: The template refuses the conversation, in its own words.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=open_answer
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise DataError(f"the chat template cannot render it: {error}") from None


def _end_mark(tokenizer: PreTrainedTokenizerBase) -> str | None:
    known = tokenizer.get_vocab()
    if "<|im_end|>" in known and len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1:
        return "<|im_end|>"
    return str(tokenizer.eos_token) if tokenizer.eos_token is not None else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot be read: {reason}", where=str(path), key="data.chat_template") from None

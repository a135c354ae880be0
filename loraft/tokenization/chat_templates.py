"""Chat templates: which one is used, and those that loraft brings.

How a template prints a conversation is for `turns.py` to find out.

Where the turn's own end mark is no single token of the vocabulary, the tokenizer's end-of-text token ends each
assistant's turn instead, so that the end of an answer is always one token that generation can stop at.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loraft.errors import DataError

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
    notes = []
    if setting == "auto":
        notes.append(f"the tokenizer has no chat template: {name} is used and saved with what is trained")
    if end != "<|im_end|>":
        notes.append(f"the chat template {name} ends each answer with {end}, the tokenizer's own end")
    return _begin(tokenizer) + text.replace("END", repr(end)), tuple(notes)


def _begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-text token, where the tokenizer itself puts one before every text."""
    bos = tokenizer.bos_token
    begins = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" if begins else ""


def _end_mark(tokenizer: PreTrainedTokenizerBase) -> str | None:
    known = tokenizer.get_vocab()
    if "<|im_end|>" in known and len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1:
        return "<|im_end|>"
    return str(tokenizer.eos_token) if tokenizer.eos_token is not None else None


def _read(path: Path) -> str:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot be read: {reason}", where=str(path), key="data.chat_template") from None
    if not text.strip():
        raise DataError("is empty, and no chat template", where=str(path), key="data.chat_template")
    return text

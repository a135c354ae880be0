"""Rows with a better and a worse answer, or one that a label calls good or bad: text or turns, behind their prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loraft.figures import shared_beginning
from loraft.rows.fields import Columns, Fields, shown
from loraft.rows.formats import (
    CHATS,
    Conversation,
    Message,
    PreferencePair,
    PromptCompletion,
    UnpairedAnswer,
    after_system,
    instruction_of,
    tools_of,
    turns_of,
)
from loraft.rows.row import Row

Turns = tuple[Message, ...]
LABELS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}
"""How files write that an answer is desirable, and that it is not."""


def to_pair(row: Row, columns: Columns) -> PreferencePair:
    """What a row says: `chosen` and `rejected`, or `messages` with `rejected_response`.

    Texts behind a `prompt` are read as they stand; behind an `instruction` they are turns of a conversation. Of two
    texts or two conversations without a prompt, what both begin with is the prompt.

    Raises:
        DataError: A field is missing, empty or of the wrong type, the two answers do not follow the same prompt, or
            there is no answer; it is named with file and line.
    """
    fields = Fields(row, columns)
    if fields.has("rejected_response") and not fields.has("chosen"):
        turns = _ending_with_an_answer(fields)
        return _by_turns(fields, turns, (*turns[:-1], *_answer_turns(fields, "rejected_response")))
    instruction = _instruction(fields)
    as_it_stands = not instruction and isinstance(fields.filled("prompt") or "", str)
    if isinstance(fields.value("chosen"), str) and as_it_stands:
        return _by_text(fields)
    prompt = instruction or _prompt_turns(fields)
    chosen, rejected = (_whole(_answer_turns(fields, name), prompt) for name in ("chosen", "rejected"))
    return _by_turns(fields, chosen, rejected)


def to_unpaired(row: Row, columns: Columns) -> UnpairedAnswer:
    """What a row says: `prompt` or `instruction`, `completion` and `label`, or `messages` that end with the answer.

    Raises:
        DataError: A field is missing, empty or of the wrong type, or no answer; it is named with file and line.
    """
    fields = Fields(row, columns)
    desirable = _is_desirable(fields)
    if not fields.has("completion") or "messages" in columns:
        turns = _ending_with_an_answer(fields)
        return UnpairedAnswer(_compared(fields, "messages", turns, len(turns) - 1), desirable)
    instruction = _instruction(fields)
    of_text = isinstance(fields.value("completion"), str)
    if of_text and not instruction and isinstance(fields.value("prompt"), str):
        _refuse_beside_text(fields)
        return UnpairedAnswer(PromptCompletion(fields.text("prompt"), fields.text("completion")), desirable)
    answer, prompt = _answer_turns(fields, "completion"), instruction or _prompt_turns(fields)
    if answer[0].role != "assistant":
        message = f"is the {answer[0].role}'s: the completion begins with the answer"
        raise fields.wrong("completion[0].role", message, "Put what stands before it into prompt.")
    return UnpairedAnswer(_compared(fields, "completion", (*prompt, *answer), len(prompt)), desirable)


def _is_desirable(fields: Fields) -> bool:
    """Whether the label of a row is true, as JSON has it or as tables spell it."""
    value = fields.value("label")
    found = LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        remedy = "It calls the answer desirable (true) or undesirable (false)."
        raise fields.wrong("label", f"must be true or false; found {shown(value)}", remedy)
    return found


def _by_text(fields: Fields) -> PreferencePair:
    _refuse_beside_text(fields)
    chosen, rejected = fields.text("chosen"), fields.text("rejected")
    if fields.filled("prompt") is not None:
        prompt = fields.text("prompt")
        return PreferencePair(PromptCompletion(prompt, chosen), PromptCompletion(prompt, rejected))
    border = shared_beginning(chosen, rejected)
    if border == min(len(chosen), len(rejected)):
        message = "has no answer of its own: without a prompt, what both begin with is taken for it"
        name = "rejected" if border == len(rejected) else "chosen"
        raise fields.wrong(name, message, "Name the prompt in a column prompt.")
    while border and not chosen[border - 1].isspace():  # a word that is parted would be other tokens
        border -= 1
    border = len(chosen[:border].rstrip(" "))
    if border == 0:
        remedy = "Name the prompt in a column prompt, or begin both texts with it."
        raise fields.wrong("prompt", "is missing, and there is nothing that both texts begin with", remedy)
    pair = (PromptCompletion(text[:border], text[border:]) for text in (chosen, rejected))
    return PreferencePair(*pair)


def _ending_with_an_answer(fields: Fields) -> Turns:
    """The turns of the column `messages`, of which the last one is the assistant's."""
    turns = _turns(fields, "messages")
    if turns[-1].role != "assistant":
        raise fields.wrong(f"messages[{len(turns) - 1}]", f"is the {turns[-1].role}'s: the last turn is the answer")
    return turns


def _instruction(fields: Fields) -> Turns:
    """What the column `instruction` asks; nothing where a column `prompt` does, and no name says otherwise."""
    comes_first = "instruction" in fields.columns or fields.filled("prompt") is None
    asks = comes_first and fields.filled("instruction") is not None
    return (Message("user", instruction_of(fields)),) if asks else ()


def _refuse_beside_text(fields: Fields) -> None:
    """Refuse a system prompt or tools beside text, which no template prints."""
    for name in ("system", "tools"):
        if fields.optional(name):
            theirs = fields.columns.get("prompt", "prompt")
            remedy = f"Name the prompt in data.columns: {{instruction: {theirs}}}, which makes turns of the text."
            raise fields.wrong(name, "is printed by a chat template, and the prompt and its answer are text", remedy)


def _answer_turns(fields: Fields, name: str) -> Turns:
    """The turns of an answer, of which text is the assistant's."""
    value, theirs = fields.value(name), fields.columns.get(name, name)
    if isinstance(value, str):
        return (Message("assistant", fields.text(name)),)
    if isinstance(value, Mapping):  # one turn by itself
        fields = Fields(replace(fields.row, values={**fields.row.values, theirs: [value]}), fields.columns)
    return _turns(fields, name)


def _prompt_turns(fields: Fields) -> Turns:
    """The turns of the column `prompt`, of which text is the user's."""
    if fields.filled("prompt") is None:
        return ()
    if isinstance(fields.value("prompt"), str):
        return (Message("user", fields.text("prompt")),)
    return _turns(fields, "prompt")


def _turns(fields: Fields, name: str) -> Turns:
    return turns_of(fields, CHATS["messages"]._replace(column=name))


def _whole(turns: Turns, prompt: Turns) -> Turns:
    """The answer behind its prompt; files have whole conversations beside a prompt too."""
    return turns if turns[0].role != "assistant" else (*prompt, *turns)


def _by_turns(fields: Fields, chosen: Turns, rejected: Turns) -> PreferencePair:
    """Two conversations, of which what both begin with is no answer: none of it is compared."""
    border = shared_beginning(chosen, rejected)
    if chosen == rejected:  # what `check` counts
        border = len(chosen) - 1
    pair = []
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        there = name if fields.has(name) else {"chosen": "messages", "rejected": "rejected_response"}[name]
        if not any(turn.role == "assistant" for turn in turns[border:]):
            raise fields.wrong(there, "has no answer of the assistant where the two differ")
        if turns[border].role != "assistant":
            message = f"is the {turns[border].role}'s, and the first that differs: both answers follow the same prompt"
            raise fields.wrong(f"{there}[{border}]", message)
        pair.append(_compared(fields, there, turns, border))
    return PreferencePair(*pair)


def _compared(fields: Fields, name: str, turns: Turns, border: int) -> Conversation:
    """A conversation of the column `name`, of which the assistant's turns from number `border` on are compared."""
    marked = tuple(
        replace(turn, train=number >= border if turn.role == "assistant" else None) for number, turn in enumerate(turns)
    )
    said = after_system(fields, marked) if fields.optional_text("system") else marked
    if said[0].role == "assistant":
        message = "begins with an answer, and nothing is asked before it"
        raise fields.wrong(name, message, "Name what is asked in a column prompt, or as the first turn.")
    if not any(turn.train for turn in said):
        raise fields.wrong(name, "has no answer of the assistant")
    return Conversation(said, tools_of(fields))

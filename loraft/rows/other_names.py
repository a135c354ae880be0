"""What our columns are called in other people's files, what stands beside a text, and what in place of turns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from loraft.config.choices import RowFormat

ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns"),
    "instruction": ("question", "query", "task", "problem", "input", "document", "article", "dialogue"),
    "output": ("answer", "response", "reply", "solution", "summary", "highlights"),
    "input": ("context",),
    "system": ("system_prompt",),
    "prompt": ("question", "query", "input", "problem"),
    "completion": ("answer", "response", "output", "reply", "solution"),
    "source": ("src", "document", "article", "dialogue"),
    "target": ("tgt", "summary", "highlights"),
    "text": (
        "sentence", "content", "review", "tweet", "comment", "message", "body", "document", "premise", "sentence1",
    ),
    "label": ("labels", "class", "category", "sentiment", "topic", "intent", "target", "emotion", "stars", "rating"),
    "text_pair": ("hypothesis", "sentence2"),
}  # fmt: skip
"""Our columns, and what they are called in other people's files."""
SPEAKERS = ("role", "from", "speaker")
"""Columns that say whose turn a text is."""
OF_MAIL = ("to", "subject")
"""Columns beside which `from` is the sender of a letter."""
ASKS = ("instruction", "prompt", "question", "query")
ANSWERS_IT = ("output", "completion", *ELSEWHERE["output"])
SPEAKS: Mapping[str, tuple[str, ...]] = {
    "user": (*ASKS, *ELSEWHERE["prompt"], "user", "human"),
    "assistant": (*ANSWERS_IT, "assistant", "gpt", "bot"),
}
"""What a text is called by whoever says it, where a turn is a question with its answer."""
CLASS_OF_IT = ("label", *ELSEWHERE["label"])


class MoreThanText(NamedTuple):
    """What stands beside a text that is learned alone.

    Attributes:
        said: What it seems to be, and what learns it.
        columns: Our column names: theirs, by which it is learned, where there is a format of such rows.
    """

    said: str
    format: RowFormat | None = None
    columns: Mapping[str, str] = MappingProxyType({})


def beside_text(unread: Collection[str], text: str) -> MoreThanText | None:
    """What `unread` columns say beside a column of texts, where their names tell it."""
    speaker, asked, answer, label = (
        next((name for name in names if name in unread), None) for names in (SPEAKERS, ASKS, ANSWERS_IT, CLASS_OF_IT)
    )
    if speaker and not (speaker == "from" and any(name in unread for name in OF_MAIL)):
        row = '{"messages": [{"role": "user", "content": "…"}, …]}'
        said = f"{speaker} says whose turn a row is, and each is learned by itself: a conversation is one row, {row}"
        return MoreThanText(said)
    if asked or answer:
        columns = {"instruction": asked or text, "output": answer or text}
        said = f"{columns['output']} looks like the answer to {columns['instruction']}, and {text} alone is learned"
        return MoreThanText(said, "alpaca", columns)
    if label:
        columns = {ours: theirs for ours, theirs in (("text", text), ("label", label)) if ours != theirs}
        return MoreThanText("task seq_cls reads a text with its label", "classification", columns)
    return None


def instead_of_turns(column: str, value: object) -> str | None:
    """What to do where a column has another value than a list of turns; None where nobody knows."""
    if isinstance(value, str):
        part = 'Part it where another one speaks, and write {"role": …, "content": …} of each part'
        return f"{part}; or learn it whole, by data.format: text and data.columns: {{text: {column}}}."
    if isinstance(value, Mapping) and value and all(isinstance(each, list | tuple) for each in value.values()):
        return _made(column, f"[dict(zip(row[{column!r}], each)) for each in zip(*row[{column!r}].values())]")
    return None


def instead_of_a_turn(column: str, turn: object) -> str | None:
    """What to do where a list of turns has something else in it; None where nobody knows."""
    if isinstance(turn, str):
        role = "('user', 'assistant')[n % 2]"
        return _made(column, f"[{{'role': {role}, 'content': text}} for n, text in enumerate(row[{column!r}])]")
    said = [key for key, value in turn.items() if isinstance(value, str)] if isinstance(turn, Mapping) else []
    speaks = {role: key for key in said for role, names in SPEAKS.items() if key in names}
    if len(said) != 2 or len(speaks) != 2:
        return None
    roles = f"(('user', {speaks['user']!r}), ('assistant', {speaks['assistant']!r}))"
    return _made(
        column, f"[{{'role': role, 'content': turn[key]}} for turn in row[{column!r}] for role, key in {roles}]"
    )


def instead_of_content(turn: Mapping[object, object]) -> str | None:
    """What to do where a turn has no text; None where nobody knows."""
    calls = '"tool_calls": [{"type": "function", "function": …}]'
    return f"Write what it has as function_call as {calls}." if turn.get("function_call") else None


def _made(column: str, turns: str) -> str:
    return f"Make turns of it, with datasets: rows.map(lambda row: {{{column!r}: {turns}}})"

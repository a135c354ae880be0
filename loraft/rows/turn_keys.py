"""The keys of turns, and of columns of objects, that say something and that nothing is read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loraft.config.choices import RowFormat
from loraft.rows.fields import Columns, Fields, columns_of
from loraft.rows.formats import CHATS, MORE
from loraft.rows.row import Row

AS_JSON = tuple(chat.column for chat in CHATS.values())
"""The columns whose turns may be JSON text."""
HOLD_TURNS = (*AS_JSON, "prompt", "chosen", "rejected", "completion", "rejected_response")
READ = {*MORE, "train", "weight", *(key for chat in CHATS.values() for key in (chat.role, chat.content))}
SAY_NOTHING = {"id"}


def unread_keys(row: Row, row_format: RowFormat, columns: Columns) -> Iterator[str]:
    """The keys of a row's turns that are not empty and that nothing is read from, such as `messages[].function_call`.

    Of a column of objects of which one key is read, the others are such too.
    """
    yield from _beside_what_is_read(row, columns)
    fields = Fields(row, columns)
    for name in (name for name in columns_of(row_format) if name in HOLD_TURNS):
        value = fields.optional(name)
        if isinstance(value, str) and name in AS_JSON:
            value = fields.json(name, value)
        for turn in value if isinstance(value, list | tuple) else [value]:
            if isinstance(turn, Mapping):
                keys = (key for key, said in turn.items() if said and key not in READ and key not in SAY_NOTHING)
                yield from (f"{columns.get(name, name)}[].{key}" for key in keys)


def _beside_what_is_read(row: Row, columns: Columns) -> Iterator[str]:
    """The other keys of columns of objects of which some are read, as `{prompt: input.messages}` says."""
    theirs = [each for each in columns.values() if each not in row.values]
    for column in dict.fromkeys(each.partition(".")[0] for each in theirs):
        held = row.values.get(column)
        names = (f"{column}.{key}" for key, said in held.items() if said) if isinstance(held, Mapping) else ()
        yield from (name for name in names if not any(f"{each}.".startswith(f"{name}.") for each in theirs))

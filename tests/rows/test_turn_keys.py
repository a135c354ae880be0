"""Which keys of turns are told as unread."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loraft.config.choices import RowFormat
from loraft.rows.row import Row
from loraft.rows.turn_keys import unread_keys

ANSWER = {"role": "assistant", "content": "x", "function_call": {"name": "f"}, "audio": None, "annotations": []}
READ = {"role": "tool", "content": "x", "name": "f", "tool_call_id": "1", "train": False, "weight": 1, "id": "7"}


@pytest.mark.parametrize(
    ("values", "row_format", "found"),
    [
        ({"messages": [ANSWER, READ]}, "messages", ["messages[].function_call"]),
        ({"messages": json.dumps([ANSWER, READ])}, "messages", ["messages[].function_call"]),
        ({"turns": [ANSWER]}, "messages", ["turns[].function_call"]),
        ({"conversations": [{"from": "gpt", "value": "x", "lang": "en"}]}, "sharegpt", ["conversations[].lang"]),
        ({"prompt": [READ], "chosen": ANSWER, "rejected": [READ]}, "preferences", ["chosen[].function_call"]),
        ({"prompt": '[{"a": 1}]', "completion": "x", "label": True}, "unpaired", []),
        ({"text": "x", "messages": [ANSWER]}, "text", []),
    ],
)
def test_what_turns_say_besides_is_named(values: dict[str, Any], row_format: RowFormat, found: list[str]) -> None:
    renamed = {"messages": "turns"} if "turns" in values else {}
    assert list(unread_keys(Row(values, "here"), row_format, renamed)) == found


@pytest.mark.parametrize(
    ("renamed", "found"),
    [
        ({"prompt": "input.messages"}, ["input.tools"]),
        ({"prompt": "input.messages", "tools": "input.tools"}, []),
    ],
)
def test_what_an_object_holds_beside_what_is_read_of_it_is_named(renamed: dict[str, str], found: list[str]) -> None:
    held = {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}], "store": False}
    row = Row({"input": held, "chosen": [READ], "rejected": [READ]}, "here")
    assert list(unread_keys(row, "preferences", renamed)) == found

"""Rows to what they say."""

from __future__ import annotations

from typing import Any

import pytest

from loraft.config.schema import RowFormat
from loraft.data.formats import Completion, Conversation, Message, Record, Text, detect_format, to_record
from loraft.data.records import Row
from loraft.errors import DataError

ASKED, ANSWERED = Message("user", "two?"), Message("assistant", "four")
TURNS = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}]


def record(values: dict[str, Any], row_format: RowFormat, columns: dict[str, str] | None = None) -> Record:
    return to_record(Row(values, "a.jsonl:7"), row_format, columns or {})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["messages"], "messages"),
        (["id", "conversations"], "sharegpt"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["prompt", "completion"], "prompt_completion"),
        (["text"], "text"),
        (["prompt", "messages"], "messages"),
    ],
)
def test_formats_are_recognised_by_their_columns(columns: list[str], expected: str) -> None:
    assert detect_format(columns) == expected


def test_renamed_columns_are_recognised() -> None:
    assert detect_format(["frage", "antwort"], {"prompt": "frage", "completion": "antwort"}) == "prompt_completion"
    assert record(
        {"frage": "a", "antwort": "b"}, "prompt_completion", {"prompt": "frage", "completion": "antwort"}
    ) == (Completion("a", "b"))


def test_columns_that_fit_nothing_are_named_with_what_would_fit() -> None:
    with pytest.raises(DataError) as caught:
        detect_format(["question", "answer"])
    said = str(caught.value)
    for word in (
        "question",
        "answer",
        "messages",
        "conversations",
        "instruction",
        "completion",
        "text",
        "data.columns",
    ):
        assert word in said


def test_a_name_of_ours_that_no_format_knows_is_refused() -> None:
    with pytest.raises(DataError, match="mesages") as caught:
        detect_format(["chat"], {"mesages": "chat"})
    assert caught.value.problems[0].key == "data.columns"


def test_what_each_format_says() -> None:
    conversation = Conversation((ASKED, ANSWERED))
    assert record({"messages": TURNS}, "messages") == conversation
    shared = [{"from": "human", "value": "two?"}, {"from": "gpt", "value": "four"}]
    assert record({"conversations": shared}, "sharegpt") == conversation
    assert record({"instruction": "two?", "output": "four"}, "alpaca") == conversation
    assert record({"instruction": "two?", "input": "", "output": "four"}, "alpaca") == conversation
    asked = record({"instruction": "Add.", "input": "2 2", "output": "four", "system": "Be brief."}, "alpaca")
    assert asked == Conversation((Message("system", "Be brief."), Message("user", "Add.\n\n2 2"), ANSWERED))
    assert record({"prompt": "two? ", "completion": "four"}, "prompt_completion") == Completion("two? ", "four")
    assert record({"text": " x\n"}, "text") == Text(" x\n")


def test_a_message_may_say_whether_it_is_trained() -> None:
    said = record({"messages": [TURNS[0], TURNS[1] | {"train": False}]}, "messages")
    assert said == Conversation((ASKED, Message("assistant", "four", train=False)))


@pytest.mark.parametrize(
    ("values", "row_format", "field"),
    [
        ({}, "messages", "messages"),
        ({"messages": None}, "messages", "messages"),
        ({"messages": []}, "messages", "messages"),
        ({"messages": "user: x"}, "messages", "messages"),
        ({"messages": [*TURNS, None]}, "messages", "messages[2]"),
        ({"messages": [*TURNS, {"role": "human", "content": "x"}]}, "messages", "messages[2].role"),
        ({"messages": [*TURNS, {"content": "x"}]}, "messages", "messages[2].role"),
        ({"messages": [*TURNS, {"role": "assistant"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": None}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": " \n"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "\ud800"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "a\0"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": [1]}]}, "messages", "messages[2].content"),
        ({"messages": [TURNS[0], TURNS[1] | {"train": 1}]}, "messages", "messages[1].train"),
        ({"conversations": [{"from": "gpt", "value": 1}]}, "sharegpt", "conversations[0].value"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "sharegpt", "conversations[0].from"),
        ({"instruction": "x"}, "alpaca", "output"),
        ({"instruction": "x", "input": 3, "output": "y"}, "alpaca", "input"),
        ({"prompt": "x", "completion": ""}, "prompt_completion", "completion"),
        ({"prompt": 1, "completion": "x"}, "prompt_completion", "prompt"),
        ({"text": None}, "text", "text"),
        ({"text": {"a": 1}}, "text", "text"),
    ],
)
def test_c46_a_bad_field_is_named_with_its_place(values: dict[str, Any], row_format: RowFormat, field: str) -> None:
    with pytest.raises(DataError) as caught:
        record(values, row_format)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("a.jsonl:7", field)


def test_a_field_is_named_as_the_file_names_it() -> None:
    with pytest.raises(DataError) as caught:
        record({"chat": [TURNS[0], {"role": "assistant", "content": ""}]}, "messages", {"messages": "chat"})
    assert caught.value.problems[0].key == "chat[1].content"

"""What stands beside a text that is learned alone, and in place of turns."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from typing import Any

import pytest

from loraft.errors import DataError
from loraft.rows.formats import to_record
from loraft.rows.other_names import beside_text
from loraft.rows.row import Row


@pytest.mark.parametrize(
    ("unread", "expected"),
    [
        (("task_id", "solution", "test_list"), ("alpaca", {"instruction": "body", "output": "solution"})),
        (("question", "answer"), ("alpaca", {"instruction": "question", "output": "answer"})),
        (("prompt", "audience"), ("alpaca", {"instruction": "prompt", "output": "body"})),
        (("topic",), ("classification", {"text": "body", "label": "topic"})),
        (("from", "date"), (None, {})),
        (("message_id", "role", "labels"), (None, {})),  # a tree of messages: no row is a text with its class
    ],
)
def test_names_beside_a_text_tell_what_else_there_is_to_learn(
    unread: tuple[str, ...], expected: tuple[str | None, dict[str, str]]
) -> None:
    found = beside_text(unread, "body")
    assert found is not None
    assert (found.format, found.columns) == expected


@pytest.mark.parametrize(
    "unread",
    [("id", "url", "title", "language", "timestamp"), ("code",), ("from", "to", "date"), ("from", "subject")],
)
def test_where_a_text_comes_from_is_nothing_to_learn(unread: tuple[str, ...]) -> None:
    assert beside_text(unread, "text") is None


def test_a_text_with_its_label_needs_no_other_name() -> None:
    found = beside_text(("label",), "text")
    assert found is not None
    assert not found.columns


ASKED = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (["Why?", "So."], ASKED),
        ([{"input": "Why?", "output": "So."}], ASKED),
        ([{"answer": "So.", "question": "Why?"}], ASKED),
        ([{"gpt": "So.", "human": "Why?"}], ASKED),
        ({"role": ["user", "assistant"], "content": ["Why?", "So."]}, ASKED),
        ({"from": ["human", "gpt"], "value": ["Why?", "So."]}, SHARED),
    ],
)
def test_what_is_told_of_conversations_in_another_shape_makes_turns_of_them(
    turns: object, expected: list[dict[str, str]]
) -> None:
    row = Row({"dialogue": turns}, "x:1")
    with pytest.raises(DataError) as caught:
        to_record(row, "messages", {"messages": "dialogue"})
    _, is_told, told = (caught.value.problems[0].remedy or "").partition("rows.map(")
    assert is_told
    made = eval(told.removesuffix(")"))(row.values)
    assert made == {"dialogue": expected}
    assert to_record(Row(made, "x:1"), "messages", {"messages": "dialogue"})


def test_who_says_which_of_two_texts_is_not_guessed() -> None:
    with pytest.raises(DataError) as caught:
        to_record(Row({"messages": [{"text": "So.", "speaker": "bot"}]}, "x:1"), "messages", {})
    assert caught.value.problems[0].remedy is None


def test_a_call_of_a_function_as_it_was_is_told_how_it_is_written_now() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    with pytest.raises(DataError, match="must be text; found nothing") as caught:
        to_record(Row({"messages": [ASKED[0], called]}, "x:1"), "messages", {})
    assert '"tool_calls": [{"type": "function", "function": …}]' in (caught.value.problems[0].remedy or "")
    now = {**called, "tool_calls": [{"type": "function", "function": called["function_call"]}]}
    assert to_record(Row({"messages": [ASKED[0], now]}, "x:1"), "messages", {})


@pytest.mark.parametrize("value", [3, 0.5, True])
@pytest.mark.parametrize("answer", ["answer", "my text", "it's", "v1.0", "said.here"])
def test_a_number_or_a_truth_in_place_of_text_is_told_what_makes_text_of_it(value: object, answer: str) -> None:
    row = {"question": "Why?", **({"said": {"here": value}} if answer == "said.here" else {answer: value})}
    columns = {"instruction": "question", "output": answer}
    with pytest.raises(DataError) as caught:
        to_record(Row(row, "x:1"), "alpaca", columns)
    made = _by_jq(caught.value, row)
    assert made is not None
    assert to_record(Row(made, "x:1"), "alpaca", columns)


@pytest.mark.parametrize(("completion", "expected"), [(ASKED[1:], ASKED), ("So.", None)])
def test_turns_of_a_prompt_and_of_its_answer_are_told_what_joins_them(completion: object, expected: object) -> None:
    row = {"my prompt": ASKED[:1], "answer": completion}
    with pytest.raises(DataError) as caught:
        to_record(Row(row, "x:1"), "prompt_completion", {"prompt": "my prompt", "completion": "answer"})
    made = _by_jq(caught.value, row)
    assert (made and made["messages"]) == expected


def _by_jq(error: DataError, row: dict[str, Any]) -> dict[str, Any] | None:
    """What jq makes of a row as a remedy tells; None where it tells nothing of the kind."""
    _, is_told, told = (error.problems[0].remedy or "").partition("jq -c ")
    if not is_told:
        return None
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    said = shlex.split(told.partition(", or with datasets")[0])
    made = subprocess.run(["jq", "-c", *said], input=json.dumps(row), capture_output=True, text=True, check=True)
    return {**json.loads(made.stdout)}


def test_a_conversation_in_one_text_is_told_how_to_be_learned_whole() -> None:
    row = Row({"chat": "USER: Why? ASSISTANT: So."}, "x:1")
    with pytest.raises(DataError) as caught:
        to_record(row, "messages", {"messages": "chat"})
    assert "data.format: text and data.columns: {text: chat}" in (caught.value.problems[0].remedy or "")
    assert to_record(row, "text", {"text": "chat"})

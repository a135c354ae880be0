"""What stands beside a text that is learned alone."""

from __future__ import annotations

import pytest

from loraft.rows.other_names import beside_text


@pytest.mark.parametrize(
    ("unread", "expected"),
    [
        (("task_id", "code", "test_list"), ("alpaca", {"instruction": "body", "output": "code"})),
        (("question", "answer"), ("alpaca", {"instruction": "question", "output": "answer"})),
        (("prompt", "audience"), ("alpaca", {"instruction": "prompt", "output": "body"})),
        (("topic",), ("classification", {"text": "body", "label": "topic"})),
        (("message_id", "role", "labels"), (None, {})),  # a tree of messages: no row is a text with its class
    ],
)
def test_names_beside_a_text_tell_what_else_there_is_to_learn(
    unread: tuple[str, ...], expected: tuple[str | None, dict[str, str]]
) -> None:
    found = beside_text(unread, "body")
    assert found is not None
    assert (found.format, found.columns) == expected


def test_where_a_text_comes_from_is_nothing_to_learn() -> None:
    assert beside_text(("id", "url", "title", "language", "timestamp"), "text") is None
    found = beside_text(("label",), "text")
    assert found is not None
    assert not found.columns, "no name is needed"

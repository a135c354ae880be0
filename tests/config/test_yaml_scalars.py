"""Plain words are YAML 1.2, and values are said in words."""

from __future__ import annotations

import math

import pytest

from loraft.config.yaml_scalars import in_words, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("010", 10),
        ("-3", -3),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("tRUE", "tRUE"),
        ("٣", "٣"),
    ],
)
def test_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_numbers_without_an_end() -> None:
    assert scalar("-.inf") == -math.inf
    assert math.isnan(float(str(scalar(".nan"))))
    assert scalar("9" * 10_000) == math.inf


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (16, "the number 16"),
        ("16", "the text '16'"),
        ([], "an empty list"),
        ({"a": 1}, "a mapping"),
        ("x" * 100, f"the text '{'x' * 59}…'"),
        (16**9_999, f"the number 0x1{'0' * 56}…"),
    ],
    ids=range(8),
)
def test_a_value_in_words(value: object, words: str) -> None:
    assert in_words(value) == words

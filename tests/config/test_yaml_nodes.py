"""Plain words are YAML 1.2, values are said in words, and keep their places."""

from __future__ import annotations

import math

import pytest

from loraft.config.yaml_nodes import dotted, in_words, read_yaml, scalar


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


def test_a_path_as_it_is_written() -> None:
    assert dotted(("data", "train", 1, "path")) == "data.train[1].path"


def test_every_value_has_its_place_and_that_of_its_key() -> None:
    top, found = read_yaml("lora:\n  layers: [1, 2]\n  r:\n", "run.yaml")
    assert top is not None
    assert found == []
    assert top.value == {"lora": {"layers": [1, 2], "r": None}}
    places = [
        (node.key.text, node.place.text) for node in map(top.near, [("lora",), ("lora", "layers", 1), ("lora", "r")])
    ]
    assert places == [
        ("run.yaml:1:1", "run.yaml:2:3"),
        ("run.yaml:2:15", "run.yaml:2:15"),
        ("run.yaml:3:3", "run.yaml:3:3"),
    ]


def test_what_is_missing_is_nearest_to_what_is_around_it() -> None:
    top, _ = read_yaml("lora:\n  layers: [1]\n", "run.yaml")
    assert top is not None
    assert top.near(("lora", "layers", 1)) is top.near(("lora", "layers"))
    assert top.near(("lora", "layers", 0, "deeper")).value == 1
    assert top.near(("model", "dtype")).key.text == "run.yaml"

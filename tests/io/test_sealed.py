"""What carries its own checksum is known where it was changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.io.sealed import is_as_sealed, is_text_as_sealed, read_sealed, sealed, sealed_text

FACTS = {"a": 1.5, "b": [None, "ü"], "c": {"d": True}}


def test_an_object_is_as_it_was_sealed_until_any_of_it_changes() -> None:
    whole = json.loads(json.dumps(sealed(FACTS)))
    assert is_as_sealed(whole)
    assert sealed(whole) == whole
    for key in FACTS:
        assert not is_as_sealed({**whole, key: "other"})
    assert not is_as_sealed({**whole, "e": 1})
    assert is_as_sealed(FACTS), "of what was never sealed nothing is known"


def test_what_is_no_object_or_another_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    assert read_sealed(file) == {}
    for text in ("", "{", "[]", "\0\0", json.dumps({**sealed(FACTS), "a": 2})):
        file.write_text(text)
        assert read_sealed(file) == {}
    file.write_bytes(b"\xff")
    assert read_sealed(file) == {}
    file.write_text(json.dumps(sealed(FACTS)))
    assert read_sealed(file) == sealed(FACTS)


@pytest.mark.parametrize(
    "harm", [lambda held: held[: len(held) // 2], lambda held: held + b"b: 3\n"], ids=["cut", "more"]
)
def test_a_text_is_as_it_was_sealed_until_any_of_it_changes(tmp_path: Path, harm: object) -> None:
    file = tmp_path / "config.yaml"
    assert is_text_as_sealed(file), "what is not there was not changed"
    file.write_text(sealed_text("a: 1\nc: 2\n"))
    assert is_text_as_sealed(file)
    assert callable(harm)
    file.write_bytes(harm(file.read_bytes()))
    assert not is_text_as_sealed(file)
    file.write_text("a: 1\n")
    assert is_text_as_sealed(file), "of what was never sealed nothing is known"

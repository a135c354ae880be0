"""Values keep their places."""

from __future__ import annotations

from loraft.config.located import Document, Entry, Place, dotted

THERE = Place(0, 3, 5, "run.yaml:3:5")
OVER = Place(1, 1, 1, "override lora.r=…")


def test_a_path_as_it_is_written() -> None:
    assert dotted(("data", "train", 1, "path")) == "data.train[1].path"


def test_what_is_missing_is_placed_at_its_section() -> None:
    document = Document("run.yaml", {"lora": {}}, {("lora",): Entry(THERE, Place(0, 3, 9, "run.yaml:3:9"))})
    assert document.entry(("lora", "r")).value == THERE
    assert document.entry(("model", "dtype")).key.text == "run.yaml"


def test_an_override_takes_over_value_and_places() -> None:
    document = Document("run.yaml", {"lora": {"layers": [1, 2]}}, {("lora", "layers", 0): Entry(THERE, THERE)})
    document.replace(("lora", "layers"), [7], OVER)
    assert document.at(("lora", "layers", 0)) == 7
    assert document.entry(("lora", "layers", 0)).value == OVER
    assert document.at(("lora", "layers", 1)) is None
    assert document.at(("lora", "layers", 0, "deeper")) is None

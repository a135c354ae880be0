"""The text that models are compared on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.merging.calibration_text import BUILT_IN, LONGEST, built_in_rows, rows_for
from tests.tiny import tiny_tokenizer


def make_run(folder: Path, data: Path, **values: object) -> Path:
    (folder / "adapter").mkdir(parents=True)
    config = {"model": {"name_or_path": "x"}, "data": {"train": str(data), **values}}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder / "adapter"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"{n} " * (1 + n % 3 * 60)},
            ]
        }
        for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "rows.jsonl"


def test_a_run_tells_the_rows_that_it_held_out(tmp_path: Path, data: Path) -> None:
    adapter = make_run(tmp_path / "run", data, eval=0.25)
    tokenizer = tiny_tokenizer()
    rows = rows_for(adapter, tokenizer)
    assert rows.source == "the run's held-out rows"
    own = rows.ids[: len(rows.ids) - len(built_in_rows(tokenizer).ids)]
    assert len(own) == 5
    assert all("<|im_start|>user" in tokenizer.decode(ids) for ids in own)
    assert max(map(len, rows.ids)) <= LONGEST
    assert [rows.first(count).source for count in (5, 6)] == [rows.source, f"{rows.source} and {BUILT_IN}"]
    behind = rows.behind([1])
    assert [behind.first(count).source for count in (6, 7)] == [rows.source, f"{rows.source} and {BUILT_IN}"]
    checkpoint = tmp_path / "run/checkpoints/step-000010/adapter"
    checkpoint.mkdir(parents=True)
    assert rows_for(checkpoint, tokenizer).ids == rows.ids


def test_without_such_rows_there_is_text_of_our_own(tmp_path: Path, data: Path) -> None:
    tokenizer = tiny_tokenizer()
    elsewhere = tmp_path / "somewhere"
    for adapter in (elsewhere, make_run(tmp_path / "none", data, eval=None)):
        rows = rows_for(adapter, tokenizer)
        assert (rows.source, rows.notes) == (BUILT_IN, ())
        assert sum(map(len, rows.ids)) > 10_000


def test_data_that_are_gone_are_said(tmp_path: Path, data: Path) -> None:
    adapter = make_run(tmp_path / "run", data, eval=0.25)
    data.unlink()
    rows = rows_for(adapter, tiny_tokenizer())
    assert rows.source == BUILT_IN
    assert "held-out rows cannot be read, and built-in text is used" in rows.notes[0]

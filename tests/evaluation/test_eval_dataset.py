"""Rows to evaluate on, as tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.sections import DataSource
from loraft.evaluation.eval_dataset import EvalPurpose, read_eval_source, rows_of
from loraft.evaluation.past_run import PastRun
from loraft.tasks import TASKS
from loraft.tasks.training_metadata import SourceFormat
from tests.tiny import tiny_tokenizer
from tests.training.building import tiny_config, write_rows


@pytest.mark.parametrize(("positions", "asking"), [(None, 2), (4096, 2), (40, 1)])
def test_a_row_that_was_cut_asks_nothing_where_the_model_cannot_read_its_prompt(
    tmp_path: Path, positions: int | None, asking: int
) -> None:
    """Its loss is measured all the same; with positions enough it is asked with all of its prompt."""
    short = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    long = [{"role": "user", "content": "late " * 90}, {"role": "assistant", "content": "no"}]
    write_rows(tmp_path / "e.jsonl", [{"messages": short}, {"messages": [*short, *long]}])
    config = tiny_config(tmp_path, data__max_length=40, data__on_overlength="truncate")
    data, purpose = DataSource(path=str(tmp_path / "e.jsonl")), EvalPurpose(TASKS["causal_lm"], SourceFormat())
    source = read_eval_source(PastRun(tmp_path, config), "base", data, purpose)
    rows = rows_of(source, tiny_tokenizer(), positions=positions)
    assert sum(item.question is not None for item in rows.items) == asking
    assert len(rows.items) == 2
    assert sum("only their loss" in note for note in rows.notes) == (asking == 1)

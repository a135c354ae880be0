"""Rows to evaluate on, as tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from loraft import api
from loraft.config.sections import DataSource
from loraft.evaluation import open_model
from loraft.evaluation.eval_dataset import EvalPurpose, read_eval_source, rows_of
from loraft.evaluation.past_run import PastRun
from loraft.tasks import TASKS
from loraft.tasks.training_metadata import SourceFormat
from tests.tiny import tiny_tokenizer
from tests.tokenization.chats import CHATS
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


def test_an_answer_is_compared_without_the_thought_that_its_template_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Qwen3's template a perfect answer begins with an empty thought, and equalled no right answer."""
    tiny_config(tmp_path)
    (tmp_path / "model" / "chat_template.jinja").write_text(CHATS["qwen3"].template)
    asked = {"role": "user", "content": "hi"}
    answers = ["yes", "<think>\nhm\n</think>\n\nno"]
    write_rows(
        tmp_path / "e.jsonl", [{"messages": [asked, {"role": "assistant", "content": each}]} for each in answers]
    )

    def perfect(*_: object, **__: object) -> list[SimpleNamespace]:
        said = ("<think>\n\n</think>\n\nyes", "<think>\nwell\n</think>\n\nno")
        return [SimpleNamespace(completion=each, token_ids=(), ended_by="stop_id") for each in said]

    monkeypatch.setattr(open_model, "complete_batch", perfect)
    found = api.evaluate(str(tmp_path / "model"), data=tmp_path / "e.jsonl", output=tmp_path / "o.jsonl")
    assert found.measured.metrics["exact_match"] == 1

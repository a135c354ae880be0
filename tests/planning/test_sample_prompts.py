"""Prompts that a run could not answer are found before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.errors import InvalidInputError
from loraft.planning.known_run import known_run
from loraft.planning.sample_prompts import sample_ids
from tests.training.building import tiny_config, write_rows

PROMPTS = ("the order", "late " * 600, "")


def test_prompts_that_are_longer_than_the_positions_are_told_by_number(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data__eval=0.3, training__sample_prompts=PROMPTS)
    with pytest.raises(InvalidInputError, match="and the model 512 positions") as refused:
        known_run(config)
    assert [problem.key for problem in refused.value.problems] == ["training.sample_prompts"]
    unused = tiny_config(tmp_path, training__sample_prompts=PROMPTS)
    data = known_run(unused).data
    assert len(sample_ids(data.renderer, "")) > 0, "the template prints something around it"


def test_a_prompt_without_tokens_is_told_where_no_template_stands_around_it(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    write_rows(tmp_path / "train.jsonl", [{"text": f"the order {number} is late"} for number in range(12)])
    config = tiny_config(tmp_path, data__eval=0.3, training__sample_prompts=["late", ""])
    with pytest.raises(InvalidInputError, match="number 2 has no tokens"):
        known_run(config)

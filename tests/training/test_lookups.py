"""A name is looked up once for each of config, tokenizer and weights, and each file of rows is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.config.schema import RunConfig
from loraft.inference.requests import GenerationRequest
from loraft.models import sources
from loraft.rows import raw_rows
from tests.tiny import mostly_slow, save_tiny
from tests.training.building import ROWS_OF, write_rows

MODELS = {"causal_lm": "llama", "seq2seq_lm": "t5", "seq_cls": "bert"}


@pytest.fixture(scope="module", params=MODELS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Counter[Any], Counter[Any]]]:
    """A run of a base on the Hub, a folder here, and its look-ups (name, with weights): of training, of the rest."""
    tmp_path = tmp_path_factory.mktemp("run")
    base = save_tiny(tmp_path / "hub", MODELS[request.param])
    asked: Counter[Any] = Counter()

    def from_hub(name: str, revision: str | None, *, weights: bool, key: str = "") -> Path:
        asked[name, weights] += 1
        return base

    write_rows(tmp_path / "rows.jsonl", ROWS_OF[request.param]())
    config = {
        "task": request.param,
        "model": {"name_or_path": "org/base", "dtype": "float32"},
        "lora": {"r": 2},
        "data": {"train": [{"path": "rows.jsonl"}], "eval": 0.2, "max_length": 64},
        "training": {"output_dir": "run", "max_steps": 1},
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        patched.setattr(sources, "_base_from_hub", from_hub)
        api.train(RunConfig.model_validate(config))
        yield request.param, tmp_path / "run", Counter(asked), asked


@pytest.mark.slow_after(1)
def test_training_looks_a_name_up_once_for_config_and_tokenizer_and_once_for_weights(
    run: tuple[str, Path, Counter[Any], Counter[Any]],
) -> None:
    assert run[2] == {("org/base", False): 1, ("org/base", True): 1}


@pytest.mark.slow_after(1)
def test_so_do_evaluating_and_answering(run: tuple[str, Path, Counter[Any], Counter[Any]]) -> None:
    task, folder, _, asked = run
    for verb in ("evaluate", "answer"):
        asked.clear()
        if verb == "evaluate":
            api.evaluate(str(folder), options=GenerationRequest(max_new_tokens=2))
        elif task == "seq_cls":
            api.predict(str(folder), texts=[("late", None)])
        else:
            api.generate(str(folder), prompt="late", options=GenerationRequest(max_new_tokens=2)).completion  # noqa: B018
        assert asked == {("org/base", False): 1, ("org/base", True): 1}, verb


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("data", mostly_slow([None, "rows.jsonl"], None))
def test_evaluating_reads_each_file_of_rows_once(
    run: tuple[str, Path, Counter[Any], Counter[Any]], data: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    take = raw_rows.RowsRead.take

    def counted(self: raw_rows.RowsRead, raw: raw_rows.RawRow) -> None:
        take(self, raw)
        read[self.rows[-1].where] += 1

    monkeypatch.setattr(raw_rows.RowsRead, "take", counted)
    api.evaluate(str(run[1]), data=data, options=GenerationRequest(max_new_tokens=2))
    assert set(read.values()) == {1}
    assert len(read) == 12

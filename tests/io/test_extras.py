"""A package of an extra that is not installed is asked for by its extra, before anything is loaded."""

from __future__ import annotations

import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from loraft import errors
from loraft.config.sections import ModelSection
from loraft.errors import DataError, ModelError
from loraft.evaluation.open_model import chosen_metrics
from loraft.models.gguf_import import convert
from loraft.models.load_model import load_config
from loraft.planning.trackers import tracker_problems
from loraft.tasks import TASKS
from tests.stored import declare
from tests.tiny import save_tiny


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without any extra."""
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name in errors.EXTRAS else find_spec(name))


@pytest.mark.usefixtures("bare")
def test_metrics_name_the_extra() -> None:
    for asked in (None, ("bleu", "rouge1")):
        with pytest.raises(DataError) as refused:
            chosen_metrics(asked, TASKS["seq2seq_lm"], ["a"])
        assert {problem.remedy for problem in refused.value.problems} == {"pip install 'loraft[eval]'"}
    assert chosen_metrics(("exact_match",), TASKS["seq2seq_lm"], ["a"]) == ("exact_match",)
    assert chosen_metrics(None, TASKS["causal_lm"], ["a"]) == ("exact_match",)


@pytest.mark.usefixtures("bare")
def test_gguf_files_name_the_extra(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gguf") as refused:
        convert(tmp_path / "model.gguf", tmp_path)
    assert refused.value.problems[0].remedy == "pip install 'loraft[gguf]'"


@pytest.mark.usefixtures("bare")
def test_models_stored_by_compressed_tensors_name_the_extra(tmp_path: Path) -> None:
    declare(save_tiny(tmp_path), {"quant_method": "compressed-tensors", "format": "pack-quantized"})
    with pytest.raises(ModelError, match="compressed_tensors") as refused:
        load_config(ModelSection(name_or_path=str(tmp_path)))
    assert refused.value.problems[0].remedy == "pip install 'loraft[compressed]'"


@pytest.mark.usefixtures("bare")
def test_a_tracker_names_the_extra() -> None:
    (problem,) = tracker_problems(("tensorboard",))
    assert (problem.key, problem.remedy) == ("training.report_to", "pip install 'loraft[tensorboard]'")


def test_nothing_is_lacking_where_all_is_installed() -> None:
    assert [errors.lacking(package, "it") for package in errors.EXTRAS] == [None] * len(errors.EXTRAS)


def test_the_page_about_installing_names_every_extra() -> None:
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (root / "docs/guides/installing.md").read_text()
    assert [name for name in extras if f"| `{name}`" not in page and f", `{name}`" not in page] == []

"""`--adapter DIR=WEIGHT`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.errors import AdapterError
from loraft.merging.prepare_merge import resolve_weighted, weighted
from loraft.merging.write_weights import means_a_base


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/adapter", "other/a/adapter", "odd=0.5"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a=0.7", ("runs/a", 0.7)),
        ("runs/a", ("runs/a", 1.0)),
        ("runs/a=-1e-1", ("runs/a", -0.1)),
        ("odd=0.5", ("odd=0.5", 1.0)),
        ("odd=0.5=2", ("odd=0.5", 2.0)),
        ("org/name=0", ("org/name", 0.0)),
    ],
)
def test_a_place_and_a_weight(given: str, expected: tuple[str, float]) -> None:
    assert weighted(given) == expected


@pytest.mark.parametrize("given", ["runs/a=", "runs/a=much", "runs/a=nan", "runs/a=inf", "=0.5", "mine=runs/a"])
def test_what_is_no_weight_is_refused(given: str) -> None:
    with pytest.raises(AdapterError, match="is no weight"):
        weighted(given)


def test_two_runs_with_folders_of_one_name_are_summed() -> None:
    found, weights = resolve_weighted(None, ["runs/a=0.7", "other/a=0.3"])
    assert [each.folder for each in found.adapters] == [Path("runs/a/adapter"), Path("other/a/adapter")]
    assert (found.base, weights) == ("org/base", (0.7, 0.3))


def test_an_adapter_alone_has_weight_one() -> None:
    found, weights = resolve_weighted("runs/a", [])
    assert (found.adapter, weights) == (Path("runs/a/adapter"), (1.0,))


def test_a_base_alone_has_nothing_to_merge() -> None:
    with pytest.raises(AdapterError, match="org/base has no adapter that could be merged"):
        resolve_weighted("org/base", [])


def test_a_single_word_beside_adapter_is_a_base_or_the_folder_to_write(here: Path) -> None:
    (here / "model").mkdir()
    (here / "model/config.json").touch()
    (here / "merged").mkdir()
    (here / "merged/config.json").touch()
    (here / "merged/merge_report.json").touch()
    bases = ["builtin:any", "some.gguf", "model", "org/base"]
    folders = ["out", "runs/out", "merged", "runs", "org/other"]
    assert [word for word in (*bases, *folders) if means_a_base(word, ["runs/a=0.5"])] == bases


def test_a_word_that_is_too_long_for_a_path_is_no_traceback() -> None:
    assert weighted("a" * 5000 + "=0.5") == ("a" * 5000, 0.5)
    assert not means_a_base("a" * 5000, [])

"""The folder of a run: who may write to it, and what stands until a new run can begin."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.errors import OutOfMemoryError, RunFolderError
from loraft.training import run
from tests.training.building import tiny_config


def config_of(tmp_path: Path, output: str, **overrides: Any) -> Any:
    return tiny_config(tmp_path, training__output_dir=str(tmp_path / output), training__max_steps=2, **overrides)


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    first = api.train(config_of(tmp_path, "run"))
    before = (first.saved / "adapter_model.safetensors").read_bytes()
    for verb in (api.train, api.check):
        with pytest.raises(RunFolderError, match="holds a run already"):
            verb(config_of(tmp_path, "run", seed=1))
    assert (first.saved / "adapter_model.safetensors").read_bytes() == before
    second = api.train(config_of(tmp_path, "run", seed=1), overwrite=True)
    assert (second.saved / "adapter_model.safetensors").read_bytes() != before


def test_a_run_that_is_to_be_replaced_stands_until_the_new_one_can_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_config(tmp_path)
    first = api.train(config_of(tmp_path, "run"))

    def out_of_memory(_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(run, "prepared_model", out_of_memory)
        with pytest.raises(OutOfMemoryError):
            api.train(config_of(tmp_path, "run", seed=1), overwrite=True)
    assert (first.saved / "adapter_model.safetensors").is_file()
    shutil.rmtree(first.run_folder / "checkpoints")  # as after a kill while it is emptied
    (first.run_folder / "metrics.jsonl").unlink()
    assert api.train(config_of(tmp_path, "run", seed=1), overwrite=True).steps == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model__name_or_path": "{run}/model"}, "model.name_or_path"),
        ({"lora__start_from": "{run}/adapter"}, "lora.start_from"),
        ({"data__train": "{run}/rows.jsonl"}, "data.train"),
    ],
)
def test_what_a_run_begins_with_is_not_overwritten(tmp_path: Path, change: dict[str, str], named: str) -> None:
    tiny_config(tmp_path)
    for name in ("model", "adapter", "checkpoints"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run/rows.jsonl").touch()
    inside = {key: path.format(run=tmp_path / "run") for key, path in change.items()}
    with pytest.raises(RunFolderError, match=f"{named}: lies in .*, which --overwrite would replace"):
        api.train(config_of(tmp_path, "run", **inside), overwrite=True)


def test_what_a_run_that_never_began_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    (tmp_path / "run/trackers").mkdir(parents=True)
    (tmp_path / "run/.beside").touch()
    assert api.train(config_of(tmp_path, "run")).steps == 2


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="not a run's"):
        api.train(config_of(tmp_path, "run"), overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"

"""The folder of a run: who may write to it, and what stands until a new run can begin."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loraft import api
from loraft.errors import OutOfMemoryError, ResourceError, RunFolderError
from loraft.training import trainer as run
from loraft.training.run_dir import RunFolder, SavedBytes, check_disk, choose_run_folder, left_unfinished
from tests.training.building import tiny_config


def config_of(tmp_path: Path, output: str, **overrides: Any) -> Any:
    return tiny_config(tmp_path, training__output_dir=str(tmp_path / output), training__max_steps=2, **overrides)


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    first = api.train(config_of(tmp_path, "run"))
    before = (first.saved / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RunFolderError, match="holds a run already"):
        api.train(config_of(tmp_path, "run", seed=1))
    (told,) = [note for note in api.check(config_of(tmp_path, "run", seed=1)).notes if "holds a run already" in note]
    assert "`resume`" in told
    assert (first.saved / "adapter_model.safetensors").read_bytes() == before
    second = api.train(config_of(tmp_path, "run", seed=1), overwrite=True)
    assert (second.saved / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.slow
def test_a_run_that_is_to_be_replaced_stands_until_the_new_one_can_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_config(tmp_path)
    first = api.train(config_of(tmp_path, "run"))

    def out_of_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(run, "build_model", out_of_memory)
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
    with pytest.raises(RunFolderError, match=f"{named}: lies in .*, which `overwrite` would replace"):
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


def test_a_start_that_came_to_nothing_is_not_the_run_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine-1/checkpoints", "mine-2", "mine-3/checkpoints", "mine-4", "mine-²", "it[1]-1/checkpoints"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert choose_run_folder(None, "mine", resume=True) == Path("runs/mine-3")
    assert choose_run_folder(None, "mine", resume=False) == Path("runs/mine-5")
    assert choose_run_folder(None, "other", resume=True) == Path("runs/other-1")
    assert choose_run_folder(None, "it[1]", resume=False) == Path("runs/it[1]-2")


def test_a_run_left_unfinished_is_told_when_another_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine-1/checkpoints/step-000002").mkdir(parents=True)
    (told,) = left_unfinished(Path("runs/mine-2"), "mine")
    assert told.endswith("goes on by `loraft.train(loraft.load_config('runs/mine-1/config.yaml'), resume=True)`")
    (tmp_path / "runs/mine-1/adapter").mkdir()
    assert not list(left_unfinished(Path("runs/mine-2"), "mine"))
    assert not list(left_unfinished(Path("runs/other-1"), "other"))


def test_a_folder_that_nothing_can_be_written_to_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFolderError, match="nothing can be written to /dev/null"):
        check_disk(Path("/dev/null/run"), SavedBytes(0, 0), checkpoints=3)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # who runs this may be root
    with pytest.raises(RunFolderError, match=f"nothing can be written to {tmp_path}") as refused:
        check_disk(tmp_path / "a/run", SavedBytes(0, 0), checkpoints=3)
    assert refused.value.problems[0].key == "training.output_dir"


def test_checkpoints_that_are_there_already_need_no_room_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of 3 checkpoints of 116 MiB, and the best and the next one: 5 in all, and the adapter."""
    size = 2**20
    saved = SavedBytes(trained=50 * size, optimizer=50 * size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300 * size))
    with pytest.raises(ResourceError, match=r"room is needed for 5 checkpoints of 0\.12 GB"):
        check_disk(tmp_path, saved, checkpoints=5)
    (tmp_path / "checkpoints/step-000004").mkdir(parents=True)
    with (tmp_path / "checkpoints/step-000004/model.safetensors").open("wb") as file:
        file.truncate(350 * size)
    check_disk(tmp_path, saved, checkpoints=5)


LINES = b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize(
    ("held", "kept", "told"),
    [
        (LINES, LINES, False),
        (LINES + b'{"step": 4}\n{"st', LINES, False),
        (None, None, True),
        (b"", b"", True),
        (LINES[:18], b'{"step": 1}\n', True),
        (b'{"step": 1}\n{"stop: 2}\n{"step": 3}\n{"step": 4}\n', b'{"step": 1}\n{"step": 3}\n', True),
        (b"\xff" + LINES, b'{"step": 2}\n', True),
    ],
    ids=["whole", "written on", "missing", "emptied", "halved", "altered", "no text"],
)
def test_metrics_that_were_lost_are_told_and_what_is_left_is_json(
    tmp_path: Path, held: bytes | None, kept: bytes | None, told: bool
) -> None:
    folder = RunFolder(tmp_path)
    if held is not None:
        folder.metrics.write_bytes(held)
    notes = folder.cut_back({"metrics.jsonl": len(LINES), "samples.jsonl": 0})
    assert bool(notes) is told
    assert all("metrics.jsonl" in note for note in notes)
    if kept is None:
        assert not folder.metrics.exists()
    else:
        assert folder.metrics.read_bytes() == kept
    assert folder.cut_back({"metrics.jsonl": len(kept or b""), "samples.jsonl": 0}) == []

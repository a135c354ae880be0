"""Two processes that write in one place: the second is refused or waits, and what comes of it is never mixed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from loraft.training import loop
from tests.cli.running import loraft, refused, started
from tests.faults.cells import IN_CI, RESUME, Place, exit_code
from tests.faults.conftest import Trial
from tests.faults.fault_points import before_each_change
from tests.faults.test_kill_elsewhere import contents
from tests.inference.voices import adapter_in, base_in
from tests.models.gguf_files import write_tiny_gguf


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_and_the_first_goes_on(tmp_path: Path, trial: Trial) -> None:
    place = Place(tmp_path, IN_CI[0])
    (tmp_path / "other").mkdir()
    step = loop._step

    def waiting(*given: Any) -> None:
        (tmp_path / "in-a-step").touch()
        while not (tmp_path / "go-on").exists():
            time.sleep(0.01)
        step(*given)

    def first() -> None:
        loop._step = waiting

    pid = place.started(first)
    while not (tmp_path / "in-a-step").exists():
        time.sleep(0.01)
    try:
        for words in (("train", "c.yaml"), RESUME, ("train", "c.yaml", "--overwrite"), (*RESUME, "--resume-anyway")):
            with trial("two runs in one folder: the second is refused, the first ends bit-identical"):
                refused(loraft(*words, cwd=tmp_path))
        (tmp_path / "go-on").touch()
    finally:
        code = exit_code(pid)
    assert code == 0, place.said()
    place.is_as_the_whole()


WORKS = {
    "converting": (("inspect-layers", "base.gguf"), "cache"),
    "merging": (("merge", "a", "made/merged"), "made"),
    "exporting": (("export", "a", "made/m.gguf"), "made"),
}
"""Commands, and the folders in which they change files."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_two_that_make_one_thing_make_it_once_or_the_second_is_told(
    tmp_path: Path, name: str, trial: Trial, torture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFT_CACHE", str(tmp_path / "cache"))
    adapter_in(tmp_path / "a", base_in(tmp_path / "base"))
    write_tiny_gguf(tmp_path / "base.gguf")
    words, beneath = WORKS[name]
    assert loraft(*words, cwd=tmp_path).returncode == 0
    whole = contents(tmp_path, beneath)

    def slowly() -> None:
        before_each_change(tmp_path / beneath, lambda *_: time.sleep(0.03))

    for late in (0.0, 0.1, 0.2, 0.3, 0.5, 0.8) if torture else (0.0, 0.3):
        shutil.rmtree(tmp_path / beneath)
        told = [tmp_path / "first", tmp_path / "second"]
        pids = []
        with trial(f"two processes {name} at once: made once, or the second is told; never mixed"):
            for said in told:
                with said.open("w") as errors:
                    pids.append(started(*words, cwd=tmp_path, first=slowly, errors=errors.fileno()))
                time.sleep(late)
            codes = [exit_code(pid) for pid in pids]
            assert set(codes) <= {0, 2}  # two that begin in the same moment may each meet the other
            for code, said in zip(codes, told, strict=True):
                assert "error" in said.read_text() if code else "error" not in said.read_text()
            assert contents(tmp_path, beneath) == (whole if 0 in codes else {})

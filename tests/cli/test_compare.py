"""`loraft compare` as a person runs it: table, JSON, picture, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from loraft.baselines import compare_methods
from loraft.baselines.compare_methods import MeasuredCost
from tests.baselines.in_this_process import answering
from tests.cli.running import loraft, refused, started
from tests.cli.test_end_to_end import place
from tests.words import Wording

__all__ = ["place"]  # a fixture

MEMORY = {"runtime", "weights", "adapter", "gradients", "optimizer", "activations", "peak_bytes"}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What the processes would answer is computed in this one."""
    answering(monkeypatch)
    return monkeypatch


def document(place: Path, *words: str) -> dict[str, Any]:
    done = loraft("compare", "c.yaml", *words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_json_has_every_figure_of_every_method(place: Path, here: pytest.MonkeyPatch) -> None:
    found = document(place, "--steps", "2")
    assert found.keys() == {
        "model", "task", "device", "memory_of", "steps", "rows", "tokens", "trained_tokens", "methods",
    }  # fmt: skip
    assert (found["steps"], found["rows"]) == (2, 10), "all rows but the two that are held out"
    assert [each["method"] for each in found["methods"]] == ["full", "lora", "qlora"]
    for each in found["methods"]:
        assert each.keys() == {"method", "outcome", "learning_rate", "predicted", "measured", "why"}
        assert (each["outcome"], each["why"]) == ("measured", None)
        assert each["measured"].keys() == set(MeasuredCost.__dataclass_fields__)
        assert each["measured"]["memory"].keys() == MEMORY
        assert each["predicted"].keys() >= {"weights", "gradients", "optimizer", "peak_bytes", "available_bytes"}
        assert len(each["measured"]["losses"]) == 2
    full, lora, _ = found["methods"]
    assert (full["learning_rate"], lora["learning_rate"]) == (2e-5, 2e-4)
    assert not (place / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_methods_are_columns_and_no_cell_is_folded(place: Path, here: pytest.MonkeyPatch, columns: int) -> None:
    from loraft.cli import console

    here.setattr(console, "PIPE_WIDTH", columns)
    here.setenv("COLUMNS", str(columns))
    done = loraft("compare", "c.yaml", "--steps", "4", cwd=place)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "\x1b" not in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = [" ".join(line[:-3]) for line in lines if len(line) > 3]
    assert ["full", "lora", "qlora"] in lines
    for name in ("trained", "tokens/s", "loss of step 1", "loss of step 4", "learning rate", "share of all"):
        assert any(row.startswith(name) for row in rows), name
    for name in ("weights", "gradients", "optimizer", "peak, measured", "peak, predicted", "predicted is off by"):
        assert f"  {name} " in done.stdout
    assert "all trained" in done.stdout
    assert "nf4" in done.stdout


def test_progress_goes_to_standard_error(place: Path, here: pytest.MonkeyPatch) -> None:
    from loraft.cli.views import progress

    here.setattr(progress, "SECONDS_BETWEEN_PLAIN_PROGRESS", 0.0)
    done = loraft("compare", "c.yaml", "--steps", "2", "--methods", "lora", cwd=place)
    assert "lora: loading: 0 of 2\n" in done.stderr
    assert ": 2 of 2\n" in done.stderr
    assert "lora: " not in done.stdout


@pytest.mark.slow
def test_overrides_are_those_of_train(place: Path, here: pytest.MonkeyPatch) -> None:
    found = document(place, "lora.r=2", "training.learning_rate=1e-3", "--methods", "lora", "--steps", "1")
    (lora,) = found["methods"]
    assert lora["learning_rate"] == 1e-3
    assert (
        lora["measured"]["trained_parameters"]
        < document(place, "--methods", "lora", "--steps", "1")["methods"][0]["measured"]["trained_parameters"]
    )


@pytest.mark.slow
def test_a_section_that_another_method_uses_is_no_note(place: Path, here: pytest.MonkeyPatch) -> None:
    done = loraft("compare", "c.yaml", "quantization.type=fp4", "--steps", "1", "--methods", "qlora", cwd=place)
    assert "is not used" not in done.stderr
    assert "fp4" in done.stdout


@pytest.mark.slow
def test_what_is_not_measured_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "the run needs about 9.0 GB and this machine has 4.0 GB available"
    answering(monkeypatch, lambda one: one | {"too_large": small} if one.get("method") == "full" else one)
    done = loraft("compare", "c.yaml", "--steps", "1", "--methods", "full,lora", "--plot", "a.svg", cwd=place)
    assert done.returncode == 0
    assert f"does not fit: {small}" in done.stdout
    assert "(does not fit)" in (place / "a.svg").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_is_written_and_the_same_each_time(place: Path, here: pytest.MonkeyPatch, kind: str) -> None:
    name = f"cost.{kind}"
    found = document(place, "--steps", "1", "--methods", "lora", "--plot", name)
    assert found["plot"] == name
    picture = (place / name).read_bytes()
    assert picture.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    if kind == "svg":
        for word in ("gradients", "optimizer", "activations", "predicted", "lora"):
            assert word.encode() in picture


@pytest.mark.parametrize(
    "words",
    [
        ["--methods", "lora,dora"],
        ["--methods", ","],
        ["--steps", "0"],
        ["--plot", "cost.pdf"],
        ["--plot", "nowhere/cost.png"],
        ["--plot", "model"],
        ["lora.target_modules=[q_prj]"],
        ["data.train=nowhere.jsonl"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    place: Path, here: pytest.MonkeyPatch, words: list[str], wording: Wording
) -> None:
    done = loraft("compare", "c.yaml", *words, cwd=place)
    wording(refused(done))
    assert not list(place.glob("cost*"))


def test_a_picture_needs_the_extra(place: Path, here: pytest.MonkeyPatch, wording: Wording) -> None:
    from loraft import errors

    found = errors.find_spec
    here.setattr(errors, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    wording(refused(loraft("compare", "c.yaml", "--plot", "a.png", cwd=place)))


def test_where_nothing_could_be_measured_it_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_methods, "SERVE", "import os; os.kill(os.getpid(), 9)")
    done = loraft("compare", "c.yaml", "--json", cwd=place)
    assert done.returncode == 3
    assert "its process was killed" in json.loads(done.stdout)["problems"][0]["message"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_stops_it_leaves_nothing_behind(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    (place / "scratch").mkdir()
    program = "import os, time; open('pid', 'w').write(f'{os.getpid()}.'); time.sleep(600)"
    monkeypatch.setattr(compare_methods, "SERVE", program)
    monkeypatch.setattr("tempfile.tempdir", str(place / "scratch"))
    pid, told = started("compare", "c.yaml", cwd=place), place / "pid"
    deadline = time.monotonic() + 60
    while not told.exists() or not told.read_text().endswith("."):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text().strip(".")), 0)
    assert list((place / "scratch").iterdir()) == []
    assert "stopped." in (place / ".stderr").read_text()

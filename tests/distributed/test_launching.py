"""One run by several processes, whoever starts them: the same result, told once, and errors as one process has them."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest

from loraft.config.config_file import load_config
from tests.cli.running import loraft, refused
from tests.distributed.starting import TWO, Act, Launch, done, torchrun, trained
from tests.words import Wording


def accelerate(*words: str) -> Launch:
    def launch() -> None:
        from accelerate.commands.launch import main

        asked = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        sys.argv = ["accelerate", "--multi_gpu", *asked, "--main_process_port", free_port(), "-m", "loraft", *words]
        main()

    return launch


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.slow
def test_every_launcher_gives_the_same_run_and_tells_it_once(place: Path) -> None:
    """`--num-processes`, torchrun, accelerate launch; `--json` prints one document, and rank 0 alone has trackers."""
    words = ("train", "c.yaml", "training.report_to=[tensorboard]", "training.sample_prompts=[the order]", "--json")
    ours = done(place, *words, "training.output_dir=ours", *TWO)
    assert ours.returncode == 0, ours.stderr
    assert json.loads(ours.stdout)["run_folder"] == "ours"
    assert ours.stderr.count("2 ranks train together on this machine") == 1
    assert ours.stderr.count("step 4/4") == 1
    for name, launcher in (("torchrun", torchrun), ("accelerate", accelerate)):
        other = done(place, launch=launcher(*words, f"training.output_dir={name}"))
        assert other.returncode == 0, other.stderr
        assert json.loads(other.stdout)["run_folder"] == name
        assert other.stderr.count("step 4/4") == 1
        assert trained(place / name) == trained(place / "ours")
    assert len(list((place / "ours" / "trackers").rglob("events.*"))) == 2, "the hyperparameters and the metrics"
    assert len((place / "ours" / "samples.jsonl").read_text().splitlines()) == 4
    manifest = json.loads((place / "ours" / "manifest.json").read_text())
    assert manifest["ranks"] == 2


def bad_row(place: Path) -> None:
    with (place / "train.jsonl").open("a") as rows:
        rows.write('{"messages": 7}\n')


def taken(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text("")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "harm"),
    [
        (["training.max_steps=-1"], None),
        (["model.name_or_path=nowhere"], None),
        ([], taken),
        ([], bad_row),
    ],
    ids=["config", "model", "folder", "row"],
)
def test_an_error_is_told_once_as_by_one_process(
    place: Path, words: list[str], harm: Callable[[Path], None] | None
) -> None:
    if harm is not None:
        harm(place)
    alone = loraft("train", "c.yaml", *words, "--json", cwd=place)
    told = done(place, "train", "c.yaml", *words, *TWO, "--json")
    assert (told.returncode, told.stdout, told.stderr) == (alone.returncode, alone.stdout, alone.stderr)
    assert told.returncode == 2
    by_torchrun = done(place, launch=torchrun("train", "c.yaml", *words, "--json"))
    theirs = re.compile(r"^[WE]\d{4} .*\n", re.MULTILINE)  # torchrun tells of the processes too, since torch 2.15
    assert (by_torchrun.stdout, theirs.sub("", by_torchrun.stderr)) == (alone.stdout, alone.stderr)


def fault_in(module: str, name: str, rank: int, fault: Callable[[], object]) -> Act:
    """Have a function fail on one rank."""

    def harm(number: int) -> None:
        def failing(*_: object, **__: object) -> None:
            fault()

        if number == rank:
            setattr(import_module(module), name, failing)

    return harm


def bug() -> None:
    raise ZeroDivisionError("a bug")


BUILDING, STEP = ("loraft.training.trainer", "build_model"), ("loraft.training.loop", "take_step")


@pytest.mark.slow
@pytest.mark.parametrize(("where", "rank"), [(BUILDING, 1), (STEP, 1), (STEP, 0)], ids=["building", "step", "main"])
def test_a_bug_on_one_rank_shows_its_traceback_once(place: Path, where: tuple[str, str], rank: int) -> None:
    harm = fault_in(*where, rank, bug)
    ours = done(place, "train", "c.yaml", *TWO, before=harm)
    assert ours.returncode == 1
    theirs = done(place, launch=torchrun("train", "c.yaml", "--overwrite"), before=harm)
    for said in (ours.stderr, theirs.stderr):
        assert said.count('raise ZeroDivisionError("a bug")') == 1, said
        assert said.count("This is a bug in loraft") == 1
        assert rank == 0 or "on rank 1:" in said
        assert "error: " not in said


@pytest.mark.parametrize(
    "words",
    [
        ["--num-machines", "2"],
        ["--num-machines", "2", "--main-process-ip", "10.0.0.1", "--machine-rank", "2"],
        ["--num-machines", "2", "--main-process-ip", "10.0.0.1", "--max-restarts", "1"],
        ["--main-process-ip", "10.0.0.1"],
        ["--main-process-port", "29501"],
        ["--machine-rank", "1"],
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, words: list[str], wording: Wording) -> None:
    wording(refused(loraft("train", "c.yaml", *words, cwd=tmp_path)))


def test_a_machine_that_is_not_found_is_refused_by_its_option(place: Path) -> None:
    words = ("--num-machines", "2", "--machine-rank", "1", "--main-process-ip", "nosuch.invalid")
    said = refused(loraft("train", "c.yaml", *words, cwd=place))
    assert "--main-process-ip: no machine is found by the name nosuch.invalid" in said


def test_another_launcher_and_ours_are_not_both_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    said = refused(loraft("train", "c.yaml", "--num-processes", "2", cwd=tmp_path))
    assert "another launcher has started 4 processes already" in said


def test_processes_that_may_be_started_again_are_told_the_folder_of_any_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YAML takes what stands behind ` #` for a comment."""
    config, started = place / "exp #1.yaml", list[Sequence[str]]()
    (place / "c.yaml").rename(config)
    monkeypatch.setattr("loraft.cli.commands.train.start_ranks", lambda _, arguments: started.append(arguments))
    words = ("train", str(config), "training.output_dir=null", "--max-restarts", "1")
    assert loraft(*words, cwd=place).returncode == 0
    assert load_config(config, started[0][-1:]).training.output_dir == "runs/exp #1-1"


def test_a_run_that_is_started_again_has_to_have_a_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    said = refused(loraft("train", "c.yaml", "training.output_dir=null", cwd=place))
    assert "training.output_dir: the processes were started again" in said

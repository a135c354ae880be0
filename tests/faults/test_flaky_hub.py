"""A Hub that fails for the moment is asked again, what it gave is what it has, and offline nobody is asked."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from loraft.io import patience
from tests.cli.running import loraft
from tests.faults.conftest import Trial
from tests.faults.flaky_hub import LARGE, REPO, FlakyHub, flaky_hub
from tests.faults.harm import HARMS, contents_of
from tests.faults.work import ANSWER, said

pytestmark = pytest.mark.slow
FAULTS = ("500", "502", "503", "504", "429", "cut", "reset", "short", "altered", "silent")
PLACES = ("GET /revision/", "GET /tree/", "HEAD /config.json", "GET /config.json", f"GET {LARGE}")
FAILS = "a Hub that fails for the moment (5xx, silence, cut, reset, short, altered): asked again, the same model"
GENERATE = ("generate", REPO, *ANSWER)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FlakyHub]:
    with flaky_hub(tmp_path) as made:
        yield made


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that this thread would have waited between two tries; they pass at once."""
    seconds: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(patience, "SECONDS", (1.0, 2.0, 4.0))
    monkeypatch.setattr(time, "sleep", lambda asked: seconds.append(asked) if asked >= 1 else sleep(asked))
    return seconds


def snapshot(hub: FlakyHub) -> Path:
    """Where the cache has the files of the model, by their names."""
    return hub.cache / f"models--{REPO.replace('/', '--')}/snapshots/{hub.commit}"


def fetched_anew(hub: FlakyHub, faults: list[tuple[str, str]], cwd: Path, answer: str) -> None:
    """Fetch and ask the model, with nothing in the cache, from a Hub with these faults."""
    hub.forget()
    hub.asked.clear()
    hub.faults[:] = faults
    done = loraft(*GENERATE, cwd=cwd)
    assert (done.returncode, done.stdout) == (0, answer), done.stderr
    assert hub.faults == [], "each fault was met"
    assert contents_of(snapshot(hub)) == hub.files


@pytest.fixture
def answer(hub: FlakyHub, tmp_path: Path) -> str:
    """What the model answers from its own folder."""
    return loraft("generate", "source", *ANSWER, cwd=tmp_path).stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_moment_is_asked_again(
    hub: FlakyHub, tmp_path: Path, waited: list[float], answer: str, fault: str, trial: Trial
) -> None:
    of_files = ("silent", "short", "altered")
    of_answers = ("cut", "reset", *of_files)
    for place in PLACES[3:] if fault in of_files else PLACES:
        if place.startswith("HEAD") and fault in of_answers:
            continue  # it has no content
        with trial(FAILS):
            waited.clear()
            fetched_anew(hub, [(fault, place)], tmp_path, answer)
            assert waited or fault == "altered" or place.startswith("HEAD")


def test_what_was_fetched_before_a_cut_is_not_fetched_again(
    hub: FlakyHub, tmp_path: Path, waited: list[float], answer: str, trial: Trial
) -> None:
    """The Hub's library keeps what came in whole chunks, which are of 10 MB where no test makes them smaller."""
    with trial(FAILS), pytest.MonkeyPatch.context() as patched:
        patched.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1)
        fetched_anew(hub, [("cut", PLACES[-1])], tmp_path, answer)
        half = len(hub.files["model.safetensors"]) // 2
        assert [asked for path, asked in hub.asked if path.endswith(LARGE)][1:] == [None, f"bytes={half}-"]
        assert waited


def test_several_faults_in_any_order(
    hub: FlakyHub, tmp_path: Path, waited: list[float], answer: str, trial: Trial, torture: bool
) -> None:
    drawn = random.Random(17)
    for _ in range(60 if torture else 6):
        faults = [(drawn.choice(FAULTS[:7]), drawn.choice(PLACES[:2] + PLACES[3:])) for _ in range(3)]
        with trial(FAILS):
            fetched_anew(hub, faults, tmp_path, answer)
    assert len(set(waited)) > 1, "the second wait is longer"


@pytest.mark.parametrize("fault", ["503", "429", "cut", "reset"])
def test_a_hub_that_fails_for_good_is_told_of(
    hub: FlakyHub, tmp_path: Path, waited: list[float], fault: str, trial: Trial
) -> None:
    with trial("a Hub that fails for good: one sentence, after a few tries, and nothing half-fetched counts"):
        hub.always = fault
        done = loraft(*GENERATE, cwd=tmp_path)
        assert done.returncode == 2
        assert f"the Hub cannot be reached for {REPO}" in said(done)
        assert sum(waited) < 60
        assert len(hub.asked) < 40
        hub.always = None
        assert loraft(*GENERATE, cwd=tmp_path).returncode == 0


DAMAGED = "a damaged file in the Hub's cache: told, fetched again; offline refused by name"


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_of_the_hubs_cache_is_fetched_again(
    hub: FlakyHub, tmp_path: Path, answer: str, harm: str, trial: Trial, torture: bool
) -> None:
    loraft(*GENERATE, cwd=tmp_path)
    names = sorted(hub.files)
    for name in names if torture else [names[list(HARMS).index(harm) % len(names)], "model.safetensors"]:
        with trial(DAMAGED), pytest.MonkeyPatch.context() as patched:
            HARMS[harm]((snapshot(hub) / name).resolve())
            patched.setattr(constants, "HF_HUB_OFFLINE", True)
            refused = loraft(*GENERATE, cwd=tmp_path)
            assert refused.returncode == 2
            assert name in said(refused)
            patched.undo()
            done = loraft(*GENERATE, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (0, answer), done.stderr
            told = f"({name}), and were fetched again" in said(done)
            assert told == (harm != "missing")  # what is not there is fetched like what never was
            assert contents_of(snapshot(hub)) == hub.files


OFFLINE = {
    "generate, fetched": GENERATE,
    "generate, unknown": ("generate", "somebody/else", *ANSWER),
    "check": ("check", "c.yaml", f"model.name_or_path={REPO}"),
    "train": ("train", "c.yaml", f"model.name_or_path={REPO}"),
    "rows of the Hub": ("check", "c.yaml", "data.train=somebody/rows"),
    "push": ("push", "source", "somebody/else"),
    "an adapter": ("generate", "source", "--adapter", "somebody/adapter", *ANSWER),
    "merge": ("merge", "somebody/adapter", "out"),
}


def test_offline_nobody_is_asked(hub: FlakyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    """Every connection of this process is counted, to the stand-in and to anywhere else."""
    from loraft.config.config_file import dump_config
    from tests.training.building import tiny_config

    (tmp_path / "c.yaml").write_text(dump_config(tiny_config(tmp_path, training__max_steps=1)))
    assert loraft(*GENERATE, cwd=tmp_path).returncode == 0
    tried: list[Any] = []
    connect = socket.socket.connect

    def counted(this: socket.socket, address: Any) -> None:
        if this.family != socket.AF_UNIX:
            tried.append(address)
        connect(this, address)

    monkeypatch.setattr(socket.socket, "connect", counted)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **_: tried.append(asked))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    for case, words in OFFLINE.items():
        with trial("HF_HUB_OFFLINE=1: no connection is tried, and what is in the cache is used"):
            done = loraft(*words, cwd=tmp_path)
            fetched = case in ("generate, fetched", "check", "train")
            assert done.returncode == (0 if fetched else 2), (case, done.stderr)
            assert fetched or "HF_HUB_OFFLINE" in done.stderr, case
            said(done)  # no traceback
            assert (tried, hub.asked) == ([], []), case

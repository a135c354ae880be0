"""A run on two machines, which are two networks with a cable between them: trained, cut off, gone on with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.running import Done
from tests.distributed.hosts import ADDRESSES, Hosts, two_hosts, why_there_are_none
from tests.distributed.starting import SAVE, STEP, Act, Launch, Launched, at_call, be_loraft, launching, trained

TIMEOUT, ROLL, SPARE = 4, 2, 15


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two machines."""
    if (why := why_there_are_none()) is not None:
        pytest.skip(why)
    with two_hosts() as made:
        yield made


def on(hosts: Hosts, number: int, place: Path, words: Sequence[str]) -> Launch:
    """Start loraft on a machine, with a cache of its own."""
    first = ("--num-machines", "2", "--machine-rank", str(number), "--main-process-ip", ADDRESSES[0])

    def launch() -> None:
        hosts.enter(number)
        os.chdir(place)
        os.environ["LORAFT_CACHE"] = str(place / f"cache-{number}")
        be_loraft(["train", "c.yaml", *first, *words])

    return launch


def started_on_both(
    hosts: Hosts, place: Path, opened: ExitStack, *words: str, before: Act = lambda _: None
) -> list[Launched]:
    """Start a run on both."""
    launched = []
    for number in range(2):
        (place / f"machine-{number}").mkdir(exist_ok=True)
        launch = on(hosts, number, place, words)
        launched.append(opened.enter_context(launching(place / f"machine-{number}", launch=launch, before=before)))
    return launched


def trained_on_both(hosts: Hosts, place: Path, *words: str) -> list[Done]:
    """How a run ended on both."""
    with ExitStack() as opened:
        return [each.end() for each in started_on_both(hosts, place, opened, *words)]


@pytest.mark.slow
def test_two_machines_train_lose_each_other_and_go_on(hosts: Hosts, place: Path, unbroken: object) -> None:
    """Cut off in a step and in a save: both end in time and say what is missing; the end is that of one machine."""
    for where, rank, words in ((STEP, 1, []), (SAVE, 0, ["--resume"])):
        here = place / "here"
        here.unlink(missing_ok=True)

        def wait(*_: object, here: Path = here) -> None:
            here.touch()
            time.sleep(1)

        with ExitStack() as opened:
            harm = at_call(where, rank, 2, wait)
            both = started_on_both(hosts, place, opened, *words, before=harm)
            both[0].wait_for(here.exists)
            hosts.cut()
            began = time.monotonic()
            first, second = [each.end() for each in both]
        hosts.mend()
        assert time.monotonic() - began < TIMEOUT + ROLL + SPARE
        assert (first.returncode, second.returncode) == (3, 3)
        assert first.stderr.count("error: ") == second.stderr.count("error: ") == 1
        assert "rank 1 of 2 has not answered for 4 seconds" in first.stderr
        assert "rank 1 of 2 had no answer from the machine of rank 0 for 4 seconds" in second.stderr
    first, second = trained_on_both(hosts, place, "--resume", "--json")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    assert trained(place / "run") == unbroken
    assert all(list((place / f"cache-{number}").rglob("*")) for number in range(2))
    assert not list((place / "run").rglob("*partial*"))


@pytest.mark.slow
def test_a_network_that_is_cut_while_one_machine_prepares_is_noticed_by_the_other(hosts: Hosts, place: Path) -> None:
    """Before the first step: the one that waits ends in time, though the other might have taken hours."""
    here = place / "here"

    def prepare(*_: object) -> None:
        here.touch()
        time.sleep(3 * TIMEOUT)

    with ExitStack() as opened:
        harm = at_call("loraft.training.trainer:build_model", 1, 1, prepare)
        first, second = started_on_both(hosts, place, opened, before=harm)
        first.wait_for(here.exists)
        hosts.cut()
        began = time.monotonic()
        ended = first.end()
        assert time.monotonic() - began < 2 * TIMEOUT + ROLL
        hosts.mend()
        assert ended.returncode == 3
        assert "rank 1 of 2 has not answered for 4 seconds" in ended.stderr
        assert ended.stderr.count("error: ") == 1
        assert second.end().returncode == 3


@pytest.mark.slow
def test_a_machine_that_prepares_for_longer_than_others_may_be_silent_is_waited_for(hosts: Hosts, place: Path) -> None:
    with ExitStack() as opened:
        slowly = at_call("loraft.training.trainer:build_model", 1, 1, lambda *_: time.sleep(2 * TIMEOUT))
        both = started_on_both(hosts, place, opened, "training.max_steps=1", "data.eval=null", before=slowly)
        assert [each.end().returncode for each in both] == [0, 0]

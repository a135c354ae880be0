"""Ranks wait for one another as long as it takes, and not for one that is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from loraft.distributed.pulse import LEFT, Pulse
from loraft.distributed.ranks import Ranks
from loraft.distributed.roll_call import is_lost_contact
from tests.distributed.forked import forked

TIMEOUT = 1.0


def of_ranks() -> Pulse:
    return Pulse(dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT)))


def waited(ranks: Ranks, meanwhile: Callable[[Pulse], object]) -> tuple[float, str]:
    """How long rank 0 waits for rank 1, which does something meanwhile, and what ends it."""
    pulse, began = of_ranks(), time.monotonic()
    said = ""
    if ranks.rank == 1:
        meanwhile(pulse)
    try:
        pulse.meet()
    except Exception as error:
        said = str(error) if is_lost_contact(error) else f"none of torch's words: {error}"
    return time.monotonic() - began, said


@pytest.mark.slow
def test_a_rank_that_takes_longer_than_others_may_be_silent_is_waited_for() -> None:
    def act(ranks: Ranks) -> tuple[list[float], str]:
        pulse, began = of_ranks(), time.monotonic()
        for number in range(3):
            if ranks.rank == number % 2:
                time.sleep(2 * TIMEOUT if number == 0 else 0.05)
            pulse.meet()
        pulse.stop()
        return time.monotonic() - began, ""

    for found in forked(2, act):
        assert not isinstance(found, str), found
        assert 2 * TIMEOUT < found[0] < 2 * TIMEOUT + 1


def kill(_: Pulse) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(pulse: Pulse) -> None:
    time.sleep(0.2)
    pulse.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("end", "said"), [(kill, "Connection "), (leave, LEFT)])
def test_a_rank_that_goes_is_noticed_at_once(end: Callable[[Pulse], object], said: str) -> None:
    first = forked(2, lambda ranks: waited(ranks, end), barrier=False)[0]
    assert not isinstance(first, str), first
    assert first[0] < TIMEOUT
    assert said in first[1]


@pytest.mark.slow
def test_a_rank_that_stands_still_is_noticed_in_time() -> None:
    def stand(_: Pulse) -> None:
        if os.fork() == 0:  # which wakes it, for the others would never end
            time.sleep(3 * TIMEOUT)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)

    first = forked(2, lambda ranks: waited(ranks, stand), barrier=False)[0]
    assert not isinstance(first, str), first
    assert TIMEOUT < first[0] < 2 * TIMEOUT
    assert "timed out" in first[1].lower()

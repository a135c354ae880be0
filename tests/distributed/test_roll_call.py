"""What ranks that are left say, by the word that others left in the store."""

from __future__ import annotations

import pickle

import pytest
import torch.distributed as dist
import typer

from loraft.cli.launch import require_success
from loraft.distributed import roll_call
from loraft.distributed.rank_environment import RankEnvironment
from loraft.distributed.roll_call import is_lost_contact, said_by_all
from loraft.errors import DataError, Interrupted, LoraftError, LostRankError, RunError
from tests.words import Wording

CLOSED = RuntimeError("[…/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711")
LATE = RuntimeError("[…/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 4000ms for recv operation")


@pytest.fixture(autouse=True)
def _waits_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "WAITED", 0.01)


def told(
    error: Exception | KeyboardInterrupt, words: dict[int, Exception | None], *, rank: int = 0, world: int = 4
) -> BaseException:
    """What a rank raises where others left these words; two are on a machine."""
    store = dist.HashStore()
    for each, word in words.items():
        store.set(f"left {each}", pickle.dumps(word))  # type: ignore[arg-type]
    place = RankEnvironment(rank, world, rank % 2, 2)
    return said_by_all(error, store, place, 4.0, [100 + each for each in range(world)])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CLOSED, {1: None, 2: None}),
        (LATE, {1: None, 2: None}),
        (LATE, {2: None}),
        (CLOSED, {1: None, 2: None, 3: None}),
        (LATE, {1: None, 2: None, 3: None}),
    ],
)
def test_the_ranks_that_left_no_word_are_named(error: Exception, words: dict[int, None], wording: Wording) -> None:
    wording(str(told(error, dict(words))))


def test_one_rank_tells_and_knows_the_processes_of_its_machine_that_are_silent() -> None:
    first, last = told(LATE, {1: None, 3: None}, rank=1), told(LATE, {1: None, 3: None}, rank=3)
    assert isinstance(first, LostRankError)
    assert isinstance(last, LostRankError)
    assert (first.told_by_main, last.told_by_main) == (False, True)
    assert (first.silent, last.silent) == ((100,), (102,))
    gone = told(CLOSED, {3: None}, rank=3)
    assert isinstance(gone, LostRankError)
    assert gone.silent == (), "they have ended"


def test_the_word_of_an_error_is_raised_by_all_with_its_rank() -> None:
    of_another = told(CLOSED, {1: None, 2: DataError("is bad", where="rows:3"), 3: None})
    assert isinstance(of_another, DataError)
    assert "is bad (rank 2 of 4)" in str(of_another)
    assert str(told(CLOSED, {0: DataError("is bad")}, rank=1)) == "is bad"
    own = told(DataError("is bad"), {0: None, 1: None, 2: None}, rank=3)
    assert str(own) == "is bad (rank 3 of 4)", "whoever is heard first says so"
    stopped = told(CLOSED, {1: Interrupted("stopped.", signal_number=15)})
    assert isinstance(stopped, Interrupted)
    assert (str(stopped), stopped.stopped_exit_code) == ("stopped.", 143)


def test_what_a_rank_met_itself_it_raises_and_leaves() -> None:
    own = DataError("is bad")
    assert told(own, {}) is own
    assert own.told_by_main
    agreed = RunError("known to all")
    agreed.told_by_main = True
    assert told(agreed, {1: DataError("another")}) is agreed


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (CLOSED, True),
        (LATE, True),
        (dist.DistNetworkError("The client socket has timed out"), True),
        (RuntimeError("shape '[3]' is invalid"), False),
        (ValueError("gloo"), False),
        (OSError("broken pipe"), False),
    ],
)
def test_what_is_taken_for_a_lost_contact(error: Exception, is_so: bool) -> None:
    assert is_lost_contact(error) is is_so


def test_an_error_comes_before_a_kill_and_that_before_its_consequences() -> None:
    lost, stop = LostRankError("rank 1 of 2 has gone"), Interrupted("stopped.", signal_number=15)

    def raised(left: dict[int, LoraftError], ended: dict[int, int]) -> BaseException:
        with pytest.raises((LoraftError, typer.Exit)) as found:
            require_success(left, ended, 2)
        return found.value

    bad = DataError("is bad")
    assert raised({0: lost, 1: bad}, {0: 3}) is bad
    for consequence in (lost, stop):
        killed = raised({0: consequence}, {1: -9})
        assert isinstance(killed, LostRankError)
        assert (killed.exit_code, "rank 1 of 2 was ended by SIGKILL" in str(killed)) == (137, True)
        assert raised({0: consequence}, {1: -15}) is consequence
    bug = raised({}, {0: 1})
    assert isinstance(bug, typer.Exit)
    assert bug.exit_code == 1
    require_success({}, {}, 2)

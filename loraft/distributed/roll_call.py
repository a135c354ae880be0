"""What ranks that are left behind say: why the others ended, or which of them do not answer.

A rank that ends early leaves word of its error in the store by which all of them joined. One that has lost contact
leaves its own, waits a little for those of the others, and then knows who is silent.
"""

from __future__ import annotations

import pickle
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from loraft.distributed.rank_environment import RankEnvironment
from loraft.errors import STOPPING, Interrupted, LoraftError, LostRankError, Problem
from loraft.io.signals import signals_to

WAITED = 2.0
"""Seconds that a rank which has lost contact waits for the word of the others."""
LOST_WORDS = ("gloo", "connection closed", "connection reset", "timed out", "socket", "nccl", "broken pipe")
LATE_WORDS = ("timed out", "timeout")
REMEDY = "look at what that rank or its machine says, then go on with `resume`"


def is_lost_contact(error: BaseException) -> bool:
    """Whether it tells that another rank does not answer, which torch tells by words alone."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(word in said for word in LOST_WORDS)
    )


def unreached(place: RankEnvironment, seconds: float) -> LostRankError:
    """What a rank has to say to which not all others came, or which did not reach the first one."""
    message = f"rank {place.rank} of {place.world} waited {seconds:g} seconds for the others, which are not all there"
    return _lost(message, late=True)


def said_by_all(
    error: Exception | KeyboardInterrupt, store: Store, place: RankEnvironment, seconds: float, processes: Sequence[int]
) -> Exception | KeyboardInterrupt:
    """What a rank raises that ends by an error: where that is not known to all yet, they will raise the same.

    Args:
        error: What it met; that it lost contact with others is the consequence of something else.
        store: All ranks joined by it.
        place: Which rank it is.
        seconds: How long it waited for others.
        processes: Those of all ranks.
    """
    if getattr(error, "told_by_main", False):
        return error
    word = None if is_lost_contact(error) else portable(error, place.rank)
    if word is not None:
        for each in (word, error):
            each.told_by_main = True  # type: ignore[union-attr]
    with signals_to(signal.SIG_IGN, *STOPPING):  # a launcher asks those that are left to stop: they are about to
        words = _call_roll(store, place, word)
    if word is not None:
        return _named(error, place.rank, place.world, words)
    for rank, found in sorted(words.items()):
        if found is not None:
            return _named(found, rank, place.world, words)
    late = any(word in str(error).lower() for word in LATE_WORDS)
    silent = _lost(_who_is_silent(set(words), place, seconds if late else None), late=late)
    if late:
        first = place.rank - place.local_rank
        here = set(range(first, first + place.local_world)) - set(words)
        silent.silent = tuple(processes[rank] for rank in sorted(here) if words)
    silent.told_by_main = place.rank != min(words, default=place.rank)
    return silent


def _named(
    error: Exception | KeyboardInterrupt, rank: int, world: int, words: Mapping[int, Exception | None]
) -> Exception | KeyboardInterrupt:
    """The error, saying on which rank it was met, unless that is the first one, or all ranks met the same."""
    if rank == 0 or not isinstance(error, LoraftError) or isinstance(error, Interrupted):
        return error
    alike = [isinstance(each, LoraftError) and each.problems == error.problems for each in words.values()]
    return error if sum(alike) == world else of_rank(error, rank, world)


def _call_roll(store: Store, place: RankEnvironment, word: Exception | None) -> Mapping[int, Exception | None]:
    """Leave word, and read that of the other ranks; None is that one has lost contact.

    One that met an error lets go of the others, so that they need not wait, and stays until they have read of it: what
    started them would else ask them to stop.
    """
    words: dict[int, Exception | None] = {}

    def call() -> None:
        with suppress(Exception):  # the store may be what is lost
            store.set(f"left {place.rank}", pickle.dumps(word))  # type: ignore[arg-type]  # it takes bytes
            if word is not None:
                dist.destroy_process_group()
            until = time.monotonic() + WAITED
            while len(words) < place.world and time.monotonic() < until:
                for rank in set(range(place.world)) - set(words):
                    if store.check([f"left {rank}"]):
                        words[rank] = pickle.loads(store.get(f"left {rank}"))  # noqa: S301 - of a rank of this run
                time.sleep(0.05)

    caller = threading.Thread(target=call, daemon=True)  # what asks a machine that is cut off waits for long
    caller.start()
    caller.join(WAITED + 1)
    return dict(words)


def _who_is_silent(there: set[int], place: RankEnvironment, waited: float | None) -> str:
    silent = sorted(set(range(place.world)) - there)
    waited_for = "" if waited is None else f" for {waited:g} seconds"
    what = f"not answered{waited_for}" if waited_for else "gone"
    if not there:
        return f"rank {place.rank} of {place.world} had no answer from the machine of rank 0{waited_for}"
    if not silent:
        return f"the {place.world} ranks had no contact with one another{waited_for}, and all of them are there"
    if len(silent) == 1:
        return f"rank {silent[0]} of {place.world} has {what}"
    named = ", ".join(map(str, silent[:-1]))
    return f"ranks {named} and {silent[-1]} of {place.world} have {what}"


def _lost(message: str, *, late: bool) -> LostRankError:
    return LostRankError(message, key="distributed.timeout_seconds" if late else None, remedy=REMEDY)


def portable(error: Exception | KeyboardInterrupt, rank: int) -> Exception:
    """A copy of the error for other processes, which tells of its traceback where it is none of ours."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.by(error)
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, LoraftError):
        copy.add_note(f"on rank {rank}:\n{''.join(traceback.format_exception(error))}")
    return copy


def of_rank(error: LoraftError, rank: int, world: int) -> LoraftError:
    """The same error, saying on which rank it was met."""
    first, *others = error.problems
    named = Problem(f"{first.message} (rank {rank} of {world})", first.where, first.key, first.remedy, first.parameter)
    error.problems = (named, *others)
    error.args = ("\n".join(str(problem) for problem in error.problems),)
    return error

"""What is said where memory does not suffice: its parts, and which keys of the config free how much of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from loraft.distributed.ranks import Ranks
from loraft.errors import OutOfMemoryError
from loraft.io.resources import is_out_of_memory
from loraft.planning.memory import MemoryPlan
from loraft.planning.run_plan import RunPlan
from loraft.planning.smaller import most_saving

NAMED = 3
"""So many changes are named, those that free the most."""
ASKED_FOR = re.compile(r"[Tt]ried to allocate ([0-9.]+ [KMGT]i?B)")
"""How torch says for what there was no room."""
EVALUATION_BATCH = "training.per_device_eval_batch_size"
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "runtime")
SHOWN_FROM = 5 * 10**7
"""Bytes that are 0.1 GB once they are rounded."""
NOTHING = "Take a smaller model, or a device with more memory"


@contextmanager
def memory_explained(
    plan: RunPlan, ranks: Ranks, when: str = "", *, evaluates: bool = False, goes_on: bool = True
) -> Iterator[None]:
    """Turn what is raised where memory is out into an error that says what takes it, and which key frees how much.

    Each change is planned anew once memory is out, and not before. What says so already passes, as all else does.

    Args:
        plan: The run.
        ranks: Who trains it.
        when: What was done, as a part of a sentence.
        evaluates: Evaluation rows were read, whose number in a batch has a key of its own.
        goes_on: There may be a checkpoint to go on from.

    Raises:
        OutOfMemoryError: The memory of the device, or of the machine, did not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        asked = ASKED_FOR.search(str(error))
        room = f", where {asked[1]} more were asked for" if asked else ""
        key, remedy = _what_helps(plan, ranks, evaluates=evaluates)
        if goes_on:
            remedy += "\nthen go on with `resume_anyway`"
        message = f"{plan.placement.device_name} ran out of memory{when}{room}; {_predicted(plan)}"
        raise OutOfMemoryError(message, key=key, remedy=remedy) from error


def _what_helps(plan: RunPlan, ranks: Ranks, *, evaluates: bool) -> tuple[str | None, str]:
    """The first key to change, and what each of some changes would free, a line each."""
    saving, key, found = most_saving(plan, ranks, NAMED, evaluates=evaluates), None, []
    rows = plan.config.training.per_device_eval_batch_size
    if evaluates and rows > 1:
        key, found = EVALUATION_BATCH, [f"{EVALUATION_BATCH}: {rows // 2} reads half as many rows at once"]
    key = key or next((name for each in saving for name in each.changes), None)
    return key, "\n".join([*found, *(each.words for each in saving)]) or NOTHING


def _predicted(plan: RunPlan) -> str:
    """What was predicted of a step, and its parts, the largest first."""
    whole, parts = plan.memory.peak_bytes, parts_of_peak(plan.memory)
    named = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    there = f"{plan.placement.available_bytes / 1e9:.1f} GB available"
    return f"{whole / 1e9:.1f} GB of a step were predicted ({named}), of {there}"


def parts_of_peak(memory: MemoryPlan) -> dict[str, int]:
    """The largest part of the device's memory, and all others that are no 0.0 GB, the largest first, in bytes."""
    parts = {name: size for name, size in memory.as_dict().items() if name in PARTS}
    in_order = sorted(parts.items(), key=lambda part: -part[1])
    return dict([in_order[0], *(part for part in in_order[1:] if part[1] >= SHOWN_FROM)])

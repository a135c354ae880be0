"""Every task, family and method on a CUDA device that computes nothing: it runs, and the host does not wait for it.

Each group of cases runs in a process of its own, since the device takes the place of CUDA in all of it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from loraft.models.registry import FAMILIES
from tests.cuda_rehearsal.cases import CASES, Case
from tests.cuda_rehearsal.seen_once import written_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WAITS_A_STEP, WAITS_A_TOKEN = 1, 1
SCALING = 1
"""Where the loss is scaled, for float16, torch asks whether a gradient overflowed."""
OF_TRANSFORMERS = {"deberta-v2": "transformers/models/deberta_v2", "falcon": "transformers/models/falcon"}
"""Where transformers' own attention copies a number to the device in each layer."""
DROPPED = {"gpt2", "gpt_bigcode", "seed_oss"}
"""Families with dropout on their attention, which has a kernel of its own, as float32 has."""
CAPPED = {"gemma2"}
"""Families that cap the scores of attention, which flex attention does, once it is compiled."""


@cache
def seen_in(group: str, library: Path) -> dict[str, Any]:
    """What was seen of the cases of a group, which one process of the session rehearses for all others."""
    names = [name for name, case in CASES.items() if case.group == group]
    return written_once(library.with_name(f"{group}.json"), "tests.cuda_rehearsal.rehearse", library, names)


def waits(counts: dict[str, int]) -> int:
    """How often was waited, copies to the device apart."""
    return sum(count for what, count in counts.items() if not what.startswith("(copy)"))


def copies(counts: dict[str, int]) -> list[str]:
    """The copies to the device that the host waited for."""
    return [what for what in counts if what.startswith("(copy)")]


def by_case(name: str, case: Case) -> Any:
    return pytest.param(name, id=name, marks=pytest.mark.xdist_group(f"rehearsal-{case.group}"))


@pytest.mark.parametrize("name", [by_case(name, case) for name, case in CASES.items()])
def test_it_runs_and_the_host_does_not_wait(name: str, library: Path) -> None:
    case, seen = CASES[name], seen_in(CASES[name].group, library)[name]
    assert seen["failed"] == ""
    assert seen["cpu_forms"] == []
    most = WAITS_A_STEP + (SCALING if case.options.get("model__dtype") == "float16" else 0)
    assert len(seen["steps"]) == 2
    own = OF_TRANSFORMERS.get(case.model_type, "by nobody")
    for step in seen["steps"]:
        assert waits(step) <= most, step
        assert [what for what in copies(step) if own not in what] == []
    assert (seen["tokens"] != []) == (case.task != "seq_cls")
    for token in seen["tokens"]:
        assert waits(token) <= WAITS_A_TOKEN, token
        # Once an answer transformers makes counters for windows that slide; loraft copies nothing.
        assert [what for what in copies(token) if "by transformers/cache_utils" not in what and own not in what] == []


TRIED = {name: case for name, case in CASES.items() if case.tries_longest}


@pytest.mark.parametrize("name", [by_case(name, case) for name, case in TRIED.items()])
def test_no_step_holds_more_than_was_held_when_the_longest_batch_was_tried(name: str, library: Path) -> None:
    """A run that is stopped between its two steps begins twice, and tries twice."""
    case, seen = TRIED[name], seen_in(TRIED[name].group, library)[name]
    assert len(seen["held"]) == 2
    assert len(seen["tried"]) == (2 if case.is_thorough else 1)
    for at, held in enumerate(seen["held"]):
        assert held <= seen["tried"][at % len(seen["tried"])]


PACKED = {
    name: case
    for name, case in CASES.items()
    if case.task == "causal_lm" and (family := FAMILIES.get(case.model_type)) and family.packs and "padded" not in name
}


@pytest.mark.parametrize("name", [by_case(name, case) for name, case in PACKED.items()])
def test_rows_that_lie_end_to_end_take_the_kernel_for_them_and_no_mask(name: str, library: Path) -> None:
    case, seen = PACKED[name], seen_in(PACKED[name].group, library)[name]
    kernels = "\n".join(seen["attention"])
    in_float32 = case.options.get("model__dtype") == "float32"
    assert seen["dense"] == {}
    assert "_scaled_dot_product" not in kernels
    one_for_all = "_efficient_attention" if case.model_type in DROPPED or in_float32 else "_varlen_attn"
    assert ("flex_attention" if case.model_type in CAPPED else one_for_all) in kernels

"""How a model tells positions apart, found by experiment and not from its name.

A small copy of the model reads the same token at every position, and every layer of it the same vector. Then:

- What comes into the first layer differs between positions: something is added there, once (`added`).
- Queries and keys differ between positions, or their scores do: it happens inside attention (`within`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedConfig

from loraft.inspection.added import added_before, without_tables
from loraft.inspection.encodings import PositionEncoding, encoding
from loraft.inspection.miniature import miniature
from loraft.inspection.watching import Run, differs, watched
from loraft.inspection.within import acting_inside, seen_inside

__all__ = ["position_encoding"]

LENGTHS = (11, 13)
"""Tokens that each stack reads: primes, which are no size of a copy."""


def _no_values(_: str) -> None:
    """Of a model without weights."""


def position_encoding(
    config: PreTrainedConfig,
    stacks: Mapping[str, str],
    depths: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    values: Callable[[str], Tensor | None] = _no_values,
) -> PositionEncoding:
    """Find out how the model of `config` tells positions apart.

    Args:
        config: The model's config.
        stacks: The path of each list of layers.
        depths: How many layers the model itself has in each.
        shapes: The model's parameters and their sizes.
        values: The model's own tensor of a name, where it is at hand: tables that say nothing are found by it.
    """
    try:
        model, run, emptied = _tried(config, stacks)
    except Exception as error:  # whatever a model that is not in the table raises on a copy of other sizes
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return encoding("unknown", [f"a small copy of the model cannot be run: {reason}"], {}, "")
    if not any(seen.query is not None or seen.scores is not None for seen in run.attention.values()):
        return encoding("unknown", ["no attention of tokens to one another was seen in a small copy"], {}, "")
    inside = {place: seen_inside(seen) for place, seen in run.attention.items()}
    copied = {stack: len(list(model.get_submodule(path).children())) for stack, path in stacks.items()}
    acting: dict[str, tuple[int, ...]] = {}
    for stack in stacks:
        indices = tuple(index for (owner, index), found in inside.items() if owner == stack and found.kind != "none")
        # A copy has fewer layers only where none of them has settings of its own.
        acting[stack] = tuple(range(depths[stack])) if len(indices) == copied[stack] else indices
    sizes = {id(weight): (name, shapes.get(name, tuple(weight.shape))) for name, weight in _weights(model)}
    added = [stack for stack in stacks if differs(run.entered[stack])]
    first = next((found for found in inside.values() if found.kind != "none"), None)
    if first is not None:
        return _unless_alike(acting_inside(first, config, run, acting, depths, sizes, before=bool(added)), values)
    if added:
        return _unless_alike(added_before(run, emptied, added, sizes), values)
    evidence = f"one token repeated {LENGTHS[0]} times: nothing differs between positions, before the layers or in them"
    return encoding("none", [evidence], {}, "")


def _tried(config: PreTrainedConfig, stacks: Mapping[str, str]) -> tuple[nn.Module, Run, Run | None]:
    """A copy, what it did, and what it did without the tables that it looked up by position."""
    model = miniature(config)
    lengths = dict(zip(stacks, LENGTHS, strict=False))
    layers = {stack: list(model.get_submodule(path).children()) for stack, path in stacks.items()}
    try:
        run = watched(model.double(), layers, lengths)
    except (RuntimeError, TypeError):  # some compute a mask or a norm in float32 and cannot go on in float64
        run = watched(model.float(), layers, lengths)  # type: ignore[no-untyped-call]
    with without_tables(run) as there_are_some:
        return model, run, watched(model, layers, lengths) if there_are_some else None


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _unless_alike(found: PositionEncoding, values: Callable[[str], Tensor | None]) -> PositionEncoding:
    """What was found, unless the rows of all its tables are the same in the model itself."""
    tensors = [values(table.name) for table in found.tables]
    if not tensors or not all(tensor is not None and bool((tensor == tensor[:1]).all()) for tensor in tensors):
        return found
    names = " and ".join(table.name for table in found.tables)
    sentence = f"but in this model all rows of {names} are the same, so that positions are not told"
    return replace(encoding("none", [*found.evidence, sentence], {}, ""), tables=found.tables)

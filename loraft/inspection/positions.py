"""How a model tells positions apart, found by experiment and not from its name.

A small copy of the model with random weights reads the same token at every position, and every layer of it the same
vector. Then:

- What comes into the first layer differs between positions: something is added there, once. The table that was looked
  up by position is emptied; if the difference goes, it was that. Rows whose distance depends only on how far apart
  they stand are sines and cosines, which are not learned.
- Queries and keys differ between positions and keep their length: they are turned (rotary).
- Queries and keys are alike and their scores differ: something is added to the scores, a table by distance (relative
  bias) or a line (ALiBi).

This module knows these conclusions. It refuses to know families: what a model_type is said to do is not looked up.

Source: Vaswani et al. 2017, section 3.5 (https://arxiv.org/abs/1706.03762); Su et al. 2021, RoFormer
(https://arxiv.org/abs/2104.09864); Raffel et al. 2020, T5, section 2.1 (https://arxiv.org/abs/1910.10683); Press et
al. 2021, ALiBi (https://arxiv.org/abs/2108.12409).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from loraft.inspection.miniature import miniature
from loraft.inspection.watching import Attention, Run, watched

__all__ = ["PositionEncoding", "PositionTable", "position_encoding"]

Kind = Literal["learned", "sinusoidal", "rotary", "relative_bias", "alibi", "none", "unknown"]

APPLIED: Mapping[Kind, str] = {
    "learned": "once, added before the first layer",
    "sinusoidal": "once, added before the first layer",
    "rotary": "inside attention, to queries and keys, in {layers}",
    "relative_bias": "inside attention, added to the scores, in {layers}",
    "alibi": "inside attention, added to the scores, in {layers}",
    "none": "nowhere",
    "unknown": "not found out",
}
LENGTHS = (11, 13)
"""Tokens that the experiment reads: primes, which are no size of a copy."""
TOLERANCE = 1e-6
"""Relative. The copy computes in float64; what does not depend on positions comes out alike to 1e-7, where a norm or a
softmax computes in float32."""


@dataclass(frozen=True)
class PositionTable:
    """A table that is looked up by position or by distance.

    Attributes:
        name: The parameter.
        shape: Its sizes in the model itself.
        offset: The row of position 0.
        stack: Whose positions it tells.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    stack: str


@dataclass(frozen=True)
class PositionEncoding:
    """How a model tells positions apart.

    Attributes:
        kind: The way that was found.
        applied: Where it acts.
        layers: The layers inside which it acts, by stack; empty where it acts before them.
        theta: Rotary: the base of the wavelengths as the config has it, by kind of layer where they differ.
        scaling: Rotary: how wavelengths are stretched, as the config has it; None where they are not.
        turned_share: Rotary: the part of each head that is turned.
        limit: The most positions that a table has rows for; None where nothing ends.
        tables: The tables that hold it.
        evidence: What was seen, a sentence each.
    """

    kind: Kind
    applied: str
    layers: Mapping[str, tuple[int, ...]]
    theta: float | Mapping[str, float] | None
    scaling: Mapping[str, Any] | None
    turned_share: float | None
    limit: int | None
    tables: tuple[PositionTable, ...]
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class _Inside:
    """What positions do inside one layer."""

    kind: Kind
    turned: int = 0
    head_size: int = 0
    second_angle: float = 0.0


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
        return _found("unknown", {}, evidence=(f"a small copy of the model cannot be run: {reason}",))
    if not any(seen.query is not None or seen.scores is not None for seen in run.attention.values()):
        return _found("unknown", {}, evidence=("no attention of tokens to one another was seen in a small copy",))
    inside = {place: _inside(seen, run, place) for place, seen in run.attention.items()}
    copied = {stack: len(list(model.get_submodule(path).children())) for stack, path in stacks.items()}
    acting = {stack: _acting(stack, inside, copied[stack], depths[stack]) for stack in stacks}
    names = {id(weight): name for name, weight in _all_weights(model)}
    added = [stack for stack in stacks if _differs(run.entered[stack])]
    within = next((found for found in inside.values() if found.kind != "none"), None)
    if within is not None:
        found = _acting_inside(within, config, run, acting, depths, names, shapes, added)
        return _unless_alike(found, values)
    if added:
        return _unless_alike(_added_before(run, emptied, added, names, shapes), values)
    seen = f"{len(inside)} layers of a small copy" if inside else "a small copy"
    evidence = f"one token repeated {LENGTHS[0]} times: nothing differs between positions in {seen}"
    return _found("none", {}, evidence=(evidence,))


def _acting(stack: str, inside: Mapping[tuple[str, int], _Inside], copied: int, depth: int) -> tuple[int, ...]:
    """The layers of the model in which positions act; a copy with fewer layers has none with settings of its own."""
    indices = tuple(index for (owner, index), found in inside.items() if owner == stack and found.kind != "none")
    return tuple(range(depth)) if len(indices) == copied else indices


def _unless_alike(found: PositionEncoding, values: Callable[[str], Tensor | None]) -> PositionEncoding:
    """What was found, unless the rows of all its tables are the same in the model itself."""
    tensors = [values(table.name) for table in found.tables]
    if not tensors or not all(tensor is not None and bool((tensor == tensor[:1]).all()) for tensor in tensors):
        return found
    names = " and ".join(table.name for table in found.tables)
    evidence = (*found.evidence, f"but in this model all rows of {names} are the same, so that positions are not told")
    return replace(_found("none", {}, evidence=evidence), tables=found.tables)


def _found(kind: Kind, layers: Mapping[str, tuple[int, ...]], **facts: Any) -> PositionEncoding:
    nothing = {"theta": None, "scaling": None, "turned_share": None, "limit": None, "tables": ()}
    where = facts.pop("where", "every layer")
    return PositionEncoding(kind, APPLIED[kind].format(layers=where), layers, **(nothing | facts))


def _all_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=True), *model.named_buffers()]


def _tried(config: PreTrainedConfig, stacks: Mapping[str, str]) -> tuple[nn.Module, Run, Run | None]:
    """A copy, what it did, and what it did without the tables that it looked up by position."""
    model = miniature(config)
    lengths = dict(zip(stacks, LENGTHS, strict=False))
    layers = {stack: list(model.get_submodule(path).children()) for stack, path in stacks.items()}
    try:
        run = watched(model.double(), layers, lengths)
    except (RuntimeError, TypeError):  # some compute a mask or a norm in float32 and cannot go on in float64
        run = watched(model.float(), layers, lengths)  # type: ignore[no-untyped-call]
    return model, run, _without_tables(model, run, layers, lengths)


# What is added before the first layer


def _without_tables(
    model: nn.Module, run: Run, layers: Mapping[str, Sequence[nn.Module]], lengths: Mapping[str, int]
) -> Run | None:
    """The same run with the tables emptied that were looked up by position; None where there are none."""
    tables = [look.weight for look in run.lookups if look.place is None and _by_position(look.rows)]
    if not tables:
        return None
    kept = [table.detach().clone() for table in tables]
    with torch.no_grad():
        for table in tables:
            table.zero_()
        again = watched(model, layers, lengths)
        for table, values in zip(tables, kept, strict=True):
            table.copy_(values)
    return again


def _by_position(rows: Tensor) -> bool:
    """Whether other rows are taken at other positions, though the token is the same."""
    return rows.numel() > 1 and bool((rows != rows.flatten()[0]).any())


def _differs(rows: Tensor) -> bool:
    """Whether the rows `[…, time, size]` differ between positions."""
    size = rows.abs().max().clamp_min(1e-12)
    return bool((rows - rows[..., :1, :]).abs().max() > TOLERANCE * size)


def _added_before(
    run: Run,
    emptied: Run | None,
    stacks: Sequence[str],
    names: Mapping[int, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> PositionEncoding:
    where = " and of ".join(f"the {stack}" for stack in stacks)
    evidence = [
        f"one token repeated: what comes into the first layer of {where} differs between positions, "
        "and within the layers nothing else does"
    ]
    looked = [look for look in run.lookups if look.place is None and _by_position(look.rows)]
    in_tables = emptied is not None and not any(_differs(emptied.entered[stack]) for stack in stacks)
    if not in_tables:
        evidence.append("no table of the model holds that difference: it is computed, and not learned")
        return _found("sinusoidal", {}, evidence=tuple(evidence))
    tables = tuple(
        PositionTable(name, shapes.get(name, tuple(look.weight.shape)), int(look.rows.min()), stack)
        for look, stack in zip(looked, stacks, strict=False)
        if (name := names.get(id(look.weight), "a table without a name"))
    )
    evidence.append(
        f"with {' and '.join(dict.fromkeys(table.name for table in tables))} emptied the difference is gone"
    )
    limit = min(table.shape[0] - table.offset for table in tables)
    if all(_is_sines(look.weight, look.rows) for look in looked):
        evidence.append(
            "two rows are as far apart as their positions are, whichever they are: sines and cosines, which are fixed"
        )
        return _found("sinusoidal", {}, limit=limit, tables=tables, evidence=tuple(evidence))
    evidence.append(f"its rows follow no rule: they are learned, and there is none after position {limit - 1:,}")
    return _found("learned", {}, limit=limit, tables=tables, evidence=tuple(evidence))


def _is_sines(table: Tensor, rows: Tensor) -> bool:
    """Whether the distance of two rows depends only on how many positions lie between them."""
    used = table.detach()[torch.unique(rows)].double()
    distances = torch.cdist(used, used)
    steps = [distances.diagonal(step) for step in range(1, len(used))]
    return all(bool((step - step[0]).abs().max() <= 1e-3 * distances.max()) for step in steps)


# What happens inside the layers


def _inside(seen: Attention, run: Run, place: tuple[str, int]) -> _Inside:
    if seen.query is not None and seen.key is not None and _differs(seen.query) and _differs(seen.key):
        lengths = seen.query.norm(dim=-1)
        if bool((lengths - lengths[..., :1]).abs().max() <= 1e-3 * lengths.max()):
            return _turned(seen.query)
    if seen.scores is not None and (bias := _bias(seen.scores)) is not None:
        by_table = any(look.place is not None and _by_position(look.rows) for look in run.lookups)
        line = bool((bias.diff(dim=-1).diff(dim=-1)).abs().max() <= 1e-3 * bias.abs().max())
        return _Inside("alibi" if line and not by_table else "relative_bias")
    return _Inside("none")


def _turned(query: Tensor) -> _Inside:
    """How much of each head turns, and by how much its second pair does from one position to the next."""
    flat = query.flatten(0, -3)  # [heads, time, head_size]
    moves = ((flat - flat[:, :1]).abs().amax(dim=(0, 1)) > TOLERANCE * flat.abs().max()).nonzero().flatten()
    turned = int(moves.numel())
    first, second = flat[0, 0, moves], flat[0, 1, moves]
    half = turned // 2
    for pairs in (torch.stack([torch.arange(half), torch.arange(half) + half]), torch.arange(2 * half).view(half, 2).T):
        before, after = (torch.complex(row[pairs[0]], row[pairs[1]]) for row in (first, second))
        if bool((before.abs() - after.abs()).abs().max() <= 1e-3 * before.abs().max()) and half > 1:
            angle = float((after / before).angle()[1].abs())
            return _Inside("rotary", turned, flat.shape[-1], angle)
    return _Inside("rotary", turned, flat.shape[-1])


def _bias(scores: Tensor) -> Tensor | None:
    """What the last position's scores add by where the other token stands: `[heads, time]`; None where nothing."""
    last = scores.flatten(0, -3)[:, -1]
    if bool((last < -1e4).any()):
        return None
    differences = last - last[:, :1]
    return differences if bool(differences.abs().max() > TOLERANCE * last.abs().max().clamp_min(1e-6)) else None


def _acting_inside(
    found: _Inside,
    config: PreTrainedConfig,
    run: Run,
    acting: Mapping[str, tuple[int, ...]],
    depths: Mapping[str, int],
    names: Mapping[int, str],
    shapes: Mapping[str, tuple[int, ...]],
    added: Sequence[str],
) -> PositionEncoding:
    where = _where(acting, depths)
    evidence = []
    if added:
        evidence.append("what comes into the first layer differs between positions as well")
    else:
        evidence.append("one token repeated: nothing differs between positions before the first layer")
    if found.kind == "rotary":
        theta, scaling = _rope(config)
        share = found.turned / found.head_size
        evidence.append(
            "inside attention, queries and keys of one vector differ between positions and keep their length: they are "
            f"turned ({'all' if share == 1 else f'{share:.0%}'} of each head); values do not differ"
        )
        evidence += _measured(found, theta, scaling)
        return _found(
            "rotary", acting, where=where, theta=theta, scaling=scaling, turned_share=share, evidence=tuple(evidence)
        )
    evidence.append(
        "inside attention, queries and keys of one vector are alike, and their scores differ with the position"
    )
    if found.kind == "alibi":
        evidence.append("by the same amount from one position to the next, each head by its own: a line, not learned")
        return _found("alibi", acting, where=where, evidence=tuple(evidence))
    looks = [look for look in run.lookups if look.place is not None and _by_position(look.rows)]
    tables = tuple(
        PositionTable(name, shapes.get(name, tuple(look.weight.shape)), 0, look.place[0])
        for look in looks
        if look.place is not None and (name := names.get(id(look.weight), ""))
    )
    evidence += _by_tables(tables, [look.place for look in looks if look.place is not None], acting)
    return _found("relative_bias", acting, where=where, tables=tables, evidence=tuple(evidence))


def _by_tables(
    tables: Sequence[PositionTable], places: Sequence[tuple[str, int]], acting: Mapping[str, tuple[int, ...]]
) -> list[str]:
    sentences = []
    for stack in acting:
        inside = {index for owner, index in places if owner == stack}
        own = [table for table in tables if table.stack == stack]
        if len(inside) == 1 and len(acting[stack]) > 1:
            rows, heads = own[0].shape
            sentences.append(
                f"{own[0].name} ({rows} distances × {heads} heads) is looked up in layer {min(inside)} of the {stack} "
                "alone, and every layer adds it: one table that all of them share"
            )
        elif own:
            sentences.append(f"each layer of the {stack} looks up a table of its own, such as {own[0].name}")
    return sentences


def _where(acting: Mapping[str, tuple[int, ...]], depths: Mapping[str, int]) -> str:
    if all(len(indices) == depths[stack] for stack, indices in acting.items()):
        return "every layer"
    parts = [
        f"{len(indices)} of the {depths[stack]} layers of the {stack}" for stack, indices in acting.items() if indices
    ]
    return " and ".join(parts)


def _rope(config: PreTrainedConfig) -> tuple[float | Mapping[str, float] | None, Mapping[str, Any] | None]:
    """Theta and scaling as the config has them; each by the kind of layer where kinds differ."""
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_kind = {kind: each for kind, each in settings.items() if isinstance(each, dict) and "rope_theta" in each}
    if by_kind:
        thetas = {kind: float(each["rope_theta"]) for kind, each in by_kind.items()}
        scaled = {kind: scaling for kind, each in by_kind.items() if (scaling := _scaling(each))}
        same = len(set(thetas.values())) == 1
        return next(iter(thetas.values())) if same else thetas, scaled or None
    theta = settings.get("rope_theta")
    return None if theta is None else float(theta), _scaling(settings)


def _scaling(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    kind = settings.get("rope_type", "default")
    return None if kind == "default" else {key: value for key, value in settings.items() if key != "rope_theta"}


def _measured(found: _Inside, theta: object, scaling: object) -> list[str]:
    """Theta from the angle θ^(-2/d) by which the second of d/2 pairs turns a position, where nothing is stretched."""
    if not 0 < found.second_angle < math.pi or scaling is not None or not isinstance(theta, float):
        return []
    measured = found.second_angle ** (-found.turned / 2)
    if abs(measured / theta - 1) > 0.01:
        return []
    return [f"the second pair of a head turns by {found.second_angle:.4f} rad a position, which makes theta {theta:,g}"]

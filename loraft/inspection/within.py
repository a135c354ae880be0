"""What positions do inside attention: turn queries and keys, or add to their scores.

Queries and keys of one vector that differ between positions and keep their length are turned (rotary). Where they are
alike and their scores differ, something is added to the scores: a table by distance (relative bias) or a line (ALiBi).

Source: Su et al. 2021, RoFormer (https://arxiv.org/abs/2104.09864); Raffel et al. 2020, T5, section 2.1
(https://arxiv.org/abs/1910.10683); Press et al. 2021, ALiBi (https://arxiv.org/abs/2108.12409).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from loraft.inspection.encodings import PositionEncoding, PositionKind, PositionTable, encoding
from loraft.inspection.watching import TOLERANCE, Attention, Lookup, Run, differs

__all__ = ["Inside", "acting_inside", "rope_settings", "seen_inside"]

HIDDEN = -1e4
"""Scores below this are masked."""


@dataclass(frozen=True)
class Inside:
    """What positions do inside one layer.

    Attributes:
        kind: The way.
        turned: Rotary: how many numbers of a head turn.
        head_size: Rotary: of how many.
        second_angle: Rotary: by how much the second pair of a head turns from one position to the next, in radians.
        values_differ: Whether values differ between positions too; None where they were not seen.
    """

    kind: PositionKind
    turned: int = 0
    head_size: int = 0
    second_angle: float = 0.0
    values_differ: bool | None = None


def seen_inside(seen: Attention) -> Inside:
    """What positions did in a layer that read one vector at all of them."""
    if seen.query is not None and seen.key is not None and (differs(seen.query) or differs(seen.key)):
        lengths = seen.query.norm(dim=-1)
        kept = bool((lengths - lengths[..., :1]).abs().max() <= 1e-3 * lengths.max())
        values = None if seen.value is None else differs(seen.value)
        return _turned(seen.query, values) if kept and differs(seen.key) else Inside("unknown")
    if seen.scores is None:
        return Inside("none")
    last = seen.scores.flatten(0, -3)[:, -1]
    added = last - last[:, :1]
    if bool((last < HIDDEN).any()) or not bool(added.abs().max() > TOLERANCE * last.abs().max().clamp_min(1e-6)):
        return Inside("none")
    is_line = bool(added.diff(dim=-1).diff(dim=-1).abs().max() <= 1e-3 * added.abs().max())
    return Inside("alibi" if is_line else "relative_bias")


def _turned(query: Tensor, values_differ: bool | None) -> Inside:
    """How much of each head turns, and by how much its second pair does from one position to the next.

    A pair is a number of the first half with its fellow of the second (Llama), or two neighbours (GPT-J).

    Args:
        query: `[…, time, head_size]`.
        values_differ: Handed on.
    """
    flat = query.flatten(0, -3)
    moves = ((flat - flat[:, :1]).abs().amax(dim=(0, 1)) > TOLERANCE * flat.abs().max()).nonzero().flatten()
    turned, head_size = int(moves.numel()), int(flat.shape[-1])
    half = turned // 2
    layouts = (torch.arange(2 * half).view(2, half), torch.arange(2 * half).view(half, 2).T)
    for first, second in layouts if half > 1 else ():
        before, after = (torch.complex(row[moves][first], row[moves][second]) for row in (flat[0, 0], flat[0, 1]))
        if bool((before.abs() - after.abs()).abs().max() <= 1e-3 * before.abs().max()):
            return Inside("rotary", turned, head_size, float((after / before).angle()[1].abs()), values_differ)
    return Inside("rotary", turned, head_size, 0.0, values_differ)


def acting_inside(
    found: Inside,
    config: PreTrainedConfig,
    run: Run,
    acting: Mapping[str, tuple[int, ...]],
    depths: Mapping[str, int],
    sizes: Mapping[int, tuple[str, tuple[int, ...]]],
    *,
    before: bool,
) -> PositionEncoding:
    """What positions do inside attention, with its evidence.

    Args:
        found: What they do in the first layer where they do anything.
        config: The model's config, which has theta and scaling.
        run: What the copy did.
        acting: The layers in which they do, by stack.
        depths: How many layers each stack has.
        sizes: The name of each weight of the copy, by its identity, and its sizes in the model itself.
        before: Whether something is added before the first layer as well.
    """
    where = _where(acting, depths)
    evidence = [
        "what comes into the first layer differs between positions as well"
        if before
        else "one token repeated: nothing differs between positions before the first layer"
    ]
    if found.kind == "unknown":
        evidence.append("inside attention, queries or keys of one vector differ with the position, and not by a turn")
        return encoding("unknown", evidence, acting, where)
    if found.kind == "rotary":
        theta, scaling = rope_settings(config)
        share = found.turned / found.head_size
        evidence += _turning(found, theta, scaling)
        return encoding("rotary", evidence, acting, where, theta=theta, scaling=scaling, turned_share=share)
    evidence.append(
        "inside attention, queries and keys of one vector are alike, and their scores differ with the position"
    )
    if found.kind == "alibi":
        evidence.append("by the same amount from one position to the next, each head by its own: a line, not learned")
        return encoding("alibi", evidence, acting, where)
    looks = [look for look in run.lookups if look.by_distance and id(look.weight) in sizes]
    tables = tuple(
        PositionTable(*sizes[id(look.weight)], offset=0, stack=look.place[0] if look.place else next(iter(acting)))
        for look in looks
    )
    evidence += _sharing(tables, looks, acting)
    return encoding("relative_bias", evidence, acting, where, tables=tables)


def _turning(found: Inside, theta: object, scaling: object) -> list[str]:
    """What was seen of the turning.

    Theta comes from the angle θ^(-2/d) of the second of d/2 pairs; where wavelengths are stretched it is not told.
    """
    share = found.turned / found.head_size
    values = {False: "; values do not differ", True: "; values differ too", None: ""}[found.values_differ]
    sentences = [
        "inside attention, queries and keys of one vector differ between positions and keep their length: they are "
        f"turned ({'all' if share == 1 else f'{share:.0%}'} of each head){values}"
    ]
    if 0 < found.second_angle < math.pi and scaling is None and isinstance(theta, float):
        measured = found.second_angle ** (-found.turned / 2)
        if abs(measured / theta - 1) < 0.01:
            angle = f"{found.second_angle:.4f} rad"
            sentences.append(f"the second pair of a head turns by {angle} a position, which makes theta {theta:,g}")
    return sentences


def _sharing(
    tables: Sequence[PositionTable], looks: Sequence[Lookup], acting: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Which layers look the bias up, and which add it."""
    sentences = []
    for stack in acting:
        own = [(table, look) for table, look in zip(tables, looks, strict=True) if table.stack == stack]
        places = {look.place for _, look in own}
        if not own:
            continue
        table = own[0][0]
        told = f"{table.name} ({table.shape[0]} distances × {table.shape[1]} heads) is looked up by distance"
        if len(places) > 1:
            sentences.append(f"{told}, and each layer of the {stack} has such a table of its own")
        else:
            (place,) = places
            at = f"in layer {place[1]} of the {stack} alone" if place else f"once, before the layers of the {stack}"
            sentences.append(f"{told} {at}, and every layer adds it: one table that all of them share")
    return sentences


def _where(acting: Mapping[str, tuple[int, ...]], depths: Mapping[str, int]) -> str:
    if all(len(indices) == depths[stack] for stack, indices in acting.items()):
        return "every layer"
    parts = (f"{len(found)} of the {depths[stack]} layers of the {stack}" for stack, found in acting.items() if found)
    return " and ".join(parts)


def rope_settings(config: PreTrainedConfig) -> tuple[float | Mapping[str, float] | None, Mapping[str, Any] | None]:
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

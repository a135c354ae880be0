"""What an adapter changed: how far each module moved, in how many directions, and how alike two adapters are.

Values that are not finite and modules that did not move are told like all else.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraft.adapters.adapter_reader import AdapterReader
from loraft.adapters.lora_factors import LoraFactors
from loraft.adapters.metadata import AdapterTarget
from loraft.inspection.layers import ModelTable
from loraft.inspection.saved_tensors import SavedModule, saved_tensors
from loraft.models.registry import place_in


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The singular values of B `[out, r]` by A `[r, in]`, largest first: float64 `[r]`.

    Source: Golub and Van Loan, Matrix Computations, section 5.2: an orthogonal factor leaves singular values alone.
    """
    _, left = torch.linalg.qr(b.double())
    _, right = torch.linalg.qr(a.double().T)
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def effective_rank(singular: Tensor) -> float:
    """Exp of the entropy of the singular values `[r]` as shares of their sum; 0 where all are zero.

    n equal values give n, one alone gives 1.

    Source: Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality, EUSIPCO.
    """
    total = singular.sum()
    if not bool(total > 0):
        return 0.0
    shares = singular[singular > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))


def dora_change(weight: Tensor, factors: LoraFactors) -> float:
    """‖W' - W‖ of DoRA, whose rows W'ᵢ = mᵢ (W + ΔW)ᵢ / ‖(W + ΔW)ᵢ‖; W is `[out, in]`, and ΔW itself is not formed.

    Source: Liu et al. 2024, DoRA, equation 5 (https://arxiv.org/abs/2402.09353).
    """
    assert factors.magnitude is not None
    w, a, b = weight.float(), factors.a.float(), factors.b.float()
    w_squared = w.square().sum(1).double()
    w_by_delta = factors.scale * ((w @ a.T).double() * b.double()).sum(1)
    gram = a.double() @ a.double().T
    delta_squared = factors.scale**2 * ((b.double() @ gram) * b.double()).sum(1)
    moved_squared = (w_squared + 2 * w_by_delta + delta_squared).clamp_min(1e-30)
    gain = factors.magnitude.double().flatten() / moved_squared.sqrt()
    change = gain.square() * moved_squared - 2 * gain * (w_squared + w_by_delta) + w_squared
    return math.sqrt(max(0.0, float(change.sum())))


def inner_product(one: LoraFactors, other: LoraFactors) -> float:
    """trace(ΔW₁ᵀ ΔW₂) = trace((B₁ᵀ B₂)(A₂ A₁ᵀ)), each factor [r₁, r₂]."""
    left = one.b.double().T @ other.b.double()
    right = one.a.double() @ other.a.double().T
    return one.scale * other.scale * float((left * right).sum())


PLACE = re.compile(r"(?P<stack>.+?)\.(?P<index>\d+)\.(?P<name>.+)")
"""A module's place by its name alone: the first number is the layer's."""


@dataclass(frozen=True)
class ModuleMove:
    """How far one module moved; what is measured is None where a value is not finite.

    Attributes:
        path: Its full name.
        stack: The stack it lies in; where no base is at hand, the path of it; empty outside the layers.
        index: Its layer; None outside the layers.
        name: Its name inside the layer.
        scale: What B A is multiplied by.
        norm: ‖ΔW‖, Frobenius.
        relative: ‖ΔW‖ / ‖W‖; None where W is not at hand.
        effective_rank: In how many directions ΔW = scale · B A acts, from 1 to r; 0 where it is zero.
        largest: Its largest singular value.
        dead: B is zero, so that nothing was learned here.
    """

    path: str
    stack: str
    index: int | None
    name: str
    rank: int
    scale: float
    norm: float | None
    relative: float | None
    effective_rank: float | None
    largest: float | None
    dead: bool
    finite: bool


@dataclass(frozen=True)
class LayerMove:
    """How far the adapted modules of one layer moved together.

    Attributes:
        norm: The root of the sum of their squared ‖ΔW‖.
        relative: That, over the same of their W.
    """

    stack: str
    index: int
    norm: float
    relative: float | None


@dataclass(frozen=True)
class AdapterUpdates:
    """An adapter, looked at.

    Attributes:
        name: What it is called here.
        base: The base that it names.
        kind: LoRA, rsLoRA, DoRA or both.
        ranks: The ranks that occur.
        parameters: All numbers in its file.
        dtypes: How many of them in each dtype, as safetensors writes it.
        saved: The tensors that were trained whole.
        unread: Tensors that are neither.
        norm: ‖ΔW‖ over all modules; None where a value is not finite.
        relative: That, over the same of their W.
        dead: The modules whose B is zero.
        non_finite: The modules and whole tensors that hold NaN or infinity.
    """

    name: str
    folder: str
    base: str
    kind: str
    ranks: tuple[int, ...]
    alpha: float
    parameters: int
    dtypes: Mapping[str, int]
    modules: tuple[ModuleMove, ...]
    layers: tuple[LayerMove, ...]
    saved: tuple[SavedModule, ...]
    unread: tuple[str, ...]
    norm: float | None
    relative: float | None
    dead: tuple[str, ...]
    non_finite: tuple[str, ...]


@dataclass(frozen=True)
class Likeness:
    """How alike the updates of two adapters are: the cosine of the angle between them, from -1 to 1.

    Attributes:
        cosine: Over all modules; None where one of them did not move.
        modules: By module that both adapt.
        layers: By stack and layer.
    """

    one: str
    other: str
    cosine: float | None
    modules: Mapping[str, float | None]
    layers: Mapping[tuple[str, int], float | None]


def adapter_updates(adapter: AdapterTarget, opened: AdapterReader, table: ModelTable | None) -> AdapterUpdates:
    """How far an adapter moved its base; where that is not at hand, nothing is relative to it."""
    names = {place: _named(place, opened, table) for place in opened.updates}
    in_order = sorted(opened.updates, key=lambda place: _in_order(names[place]))
    measured = [_measured(names[place], opened.factors(place), table) for place in in_order]
    moves = [move for move, _ in measured]
    saved = saved_tensors(opened, table)
    norm, relative = _together(measured) if all(move.finite for move in moves) else (None, None)
    declared = opened.declared
    kinds = [word for key, word in (("use_rslora", "rsLoRA"), ("use_dora", "DoRA")) if declared.get(key)]
    broken = [*(move.path for move in moves if not move.finite), *(each.name for each in saved if not each.finite)]
    return AdapterUpdates(
        name=adapter.name,
        folder=str(opened.folder),
        base=adapter.base,
        kind=" and ".join(kinds) or "LoRA",
        ranks=tuple(sorted({move.rank for move in moves})),
        alpha=float(declared.get("lora_alpha", 8)),
        parameters=sum(opened.dtypes.values()),
        dtypes=opened.dtypes,
        modules=tuple(moves),
        layers=tuple(_by_layer(measured)),
        saved=saved,
        unread=opened.unread,
        norm=norm,
        relative=relative,
        dead=tuple(move.path for move in moves if move.dead),
        non_finite=tuple(broken),
    )


def likeness(
    one: tuple[str, AdapterReader], other: tuple[str, AdapterReader], table: ModelTable | None
) -> Likeness | None:
    """How alike two adapters' low-rank updates are; None where they share no module.

    Cosines come from the factors. A module that only one of them adapts is at right angles to the other.
    """
    (first, left), (second, right) = one, other
    parts: dict[str, tuple[float, ...]] = {}
    layers: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for path in sorted({*left.updates, *right.updates}, key=_in_order):
        f, g = (file.factors(path) if path in file.updates else None for file in (left, right))
        parts[path] = (_inner(f, g), _inner(f, f), _inner(g, g))
        stack, index, _ = _place(path, table)
        if index is not None:
            layers.setdefault((stack, index), []).append(parts[path])
    shared = [path for path in parts if path in left.updates and path in right.updates]
    if not shared:
        return None
    by_module = {path: _cosine([parts[path]]) for path in shared}
    by_layer = {place: _cosine(inside) for place, inside in layers.items()}
    return Likeness(first, second, _cosine(parts.values()), by_module, by_layer)


def _inner(one: LoraFactors | None, other: LoraFactors | None) -> float:
    """The inner product of two updates; 0 where one is absent, or their modules have other sizes."""
    if one is None or other is None:
        return 0.0
    same_sizes = one.a.shape[1] == other.a.shape[1] and one.b.shape[0] == other.b.shape[0]
    return inner_product(one, other) if same_sizes else 0.0


def _cosine(parts: Iterable[tuple[float, ...]]) -> float | None:
    """Of (inner product, square of one, square of the other), summed over modules."""
    inner, one, other = (math.fsum(column) for column in zip(*parts, strict=True))
    size = math.sqrt(one * other) if one > 0 and other > 0 else 0.0
    return max(-1.0, min(1.0, inner / size)) if size > 0 and math.isfinite(inner / size) else None


_Measured = tuple[ModuleMove, float | None]
"""How far a module moved, and the norm of its weight in the base."""


def _measured(path: str, factors: LoraFactors, table: ModelTable | None) -> _Measured:
    tensors = [tensor for tensor in (factors.a, factors.b, factors.magnitude) if tensor is not None]
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    dead = not bool(factors.b.count_nonzero())
    norm = directions = largest = size = None
    if finite:
        each = [factors.expert(number) for number in range(factors.experts)]
        singular = factors.scale * torch.stack([singular_values(expert.a, expert.b) for expert in each])
        norm, largest = float(singular.norm()), float(singular.max())
        directions = sum(map(effective_rank, singular)) / len(singular)
        weight = _weight(path, factors, table)
        if factors.magnitude is not None and weight is not None and table is not None and path not in table.embeddings:
            norm = dora_change(weight, factors)
        size = float(weight.float().norm()) if weight is not None else None
    relative = norm / size if norm is not None and size else None
    place, rank, scale = _place(path, table), factors.rank, factors.scale
    return ModuleMove(path, *place, rank, scale, norm, relative, directions, largest, dead, finite), size


def _weight(path: str, factors: LoraFactors, table: ModelTable | None) -> Tensor | None:
    """The base's weight as `[out, in]`, where it is at hand and fits."""
    if table is None:
        return None
    parameter = table.storage.tensor(path)
    if parameter is not None and parameter.is_floating_point():
        return parameter if _fits(factors, parameter) else None
    weight = table.storage.tensor(f"{path}.weight")
    if weight is None or not weight.is_floating_point() or weight.dim() != 2:
        return None
    stored = weight.T if path in table.transposed | table.embeddings else weight
    return stored if stored.shape == (factors.b.shape[0], factors.a.shape[1]) else None


def _fits(factors: LoraFactors, parameter: Tensor) -> bool:
    """Whether an update is of a parameter's size: that of one matrix, or of one for each expert, lying either way."""
    sizes = {factors.a.shape[1], factors.b.shape[0]}
    *experts, first, second = parameter.shape
    return experts == ([] if factors.experts == 1 else [factors.experts]) and sizes == {first, second}


def _named(place: str, opened: AdapterReader, table: ModelTable | None) -> str:
    """What an update is of: a module, or a parameter; of several in one module the one of its size in the base."""
    names = opened.parameters.get(place, [])
    if len(names) <= 1:
        return names[0] if names else place
    factors = opened.factors(place)
    weights = ((name, table.storage.tensor(name)) for name in names) if table is not None else ()
    return next((name for name, weight in weights if weight is not None and _fits(factors, weight)), place)


def _place(path: str, table: ModelTable | None) -> tuple[str, int | None, str]:
    """Stack, layer and name inside it."""
    if table is not None:
        place = place_in({stack.name: stack.path for stack in table.anatomy.stacks}, path)
        return place if place.layer >= 0 else ("", None, path)
    match = PLACE.fullmatch(path)
    return (match["stack"], int(match["index"]), match["name"]) if match else ("", None, path)


def _in_order(path: str) -> list[tuple[int, str]]:
    """Names in the order that a person counts layers in."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def _by_layer(measured: Iterable[_Measured]) -> Iterator[LayerMove]:
    """The layers of which every value is finite."""
    for (stack, index), group in itertools.groupby(measured, lambda each: (each[0].stack, each[0].index)):
        inside = list(group)
        if index is not None and all(move.finite for move, _ in inside):
            yield LayerMove(stack, index, *_together(inside))


def _together(measured: Sequence[_Measured]) -> tuple[float, float | None]:
    """The norm over several modules, and that over the norm of their weights."""
    norms = [move.norm or 0.0 for move, _ in measured]
    norm = math.sqrt(sum(each * each for each in norms))
    sizes = [size * size for _, size in measured if size is not None]
    whole = math.sqrt(sum(sizes)) if len(sizes) == len(measured) else 0.0
    return norm, norm / whole if whole else None

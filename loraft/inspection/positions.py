"""How a model tells positions apart, found by an experiment on a small copy and not from its name.

The copy reads one token at every position, and every layer of it one vector. What then differs between positions
before the first layer was added there; queries and keys that differ inside attention are turned, and scores that differ
have something added. The config gives only the numbers of rotary positions: theta and scaling.

Sources: Vaswani et al. 2017, section 3.5 (https://arxiv.org/abs/1706.03762); T5, section 2.1
(https://arxiv.org/abs/1910.10683); RoFormer (https://arxiv.org/abs/2104.09864); ALiBi
(https://arxiv.org/abs/2108.12409).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.errors import first_line
from loraft.inspection.norms import miniature
from loraft.models.model_structure import depths, placed_layers

LENGTHS = (11, 13)
"""Tokens that each stack reads: primes, which are no size of a copy. Different ones keep a decoder's attention to
itself apart from that to the encoder."""
TOLERANCE = 1e-6
"""Relative. A copy in float64 computes what does not depend on positions alike to 1e-7, where a norm or a softmax is in
float32."""
HIDDEN = -1e4
"""Scores below this are masked."""
UNKNOWN = "not found out"

PositionKind = Literal["learned", "sinusoidal", "rotary", "relative_bias", "alibi", "none", "unknown"]
Place = tuple[str, int]
"""A layer: its stack and its index in it."""
Found = tuple[list[str], dict[str, Any]]
"""Evidence, and what else of an encoding was found."""


@dataclass(frozen=True)
class PositionTable:
    """A parameter that is looked up by position or by distance.

    Attributes:
        shape: Its sizes in the model itself.
        offset: The row of position 0.
        stack: Whose positions it tells.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    stack: str


@dataclass(frozen=True, kw_only=True)
class PositionEncoding:
    """How a model tells positions apart.

    Attributes:
        layers: The layers inside which it acts, by stack; empty where it acts before them.
        theta: Rotary: the base of the wavelengths as the config has it, by kind of layer where they differ.
        scaling: Rotary: how wavelengths are stretched, as the config has it; None where they are not.
        turned_share: Rotary: the part of each head that is turned.
        limit: The most positions that a table has rows for; None where nothing ends.
        evidence: What was seen, a sentence each.
    """

    kind: PositionKind
    applied: str
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    theta: float | Mapping[str, float] | None = None
    scaling: Mapping[str, Any] | None = None
    turned_share: float | None = None
    limit: int | None = None
    tables: tuple[PositionTable, ...] = ()
    evidence: tuple[str, ...]


def position_encoding(
    model: PreTrainedModel, stacks: Mapping[str, str], values: Callable[[str], Tensor | None] = lambda _: None
) -> PositionEncoding:
    """Find out how a model tells positions apart.

    Args:
        model: It may be on the meta device: its weights are not looked at.
        stacks: The path of each list of layers.
        values: The model's own tensor of a name, where it is at hand: tables that say nothing are found by it.
    """
    try:
        run = _Experiment(model, stacks)
        try:
            run.read(torch.float64)
        except (RuntimeError, TypeError):  # some compute a mask or a norm in float32 and cannot go on in float64
            run.read(torch.float32)
    except Exception as error:  # whatever a model that is not in the table raises on a copy of other sizes
        return _nothing("unknown", f"a small copy of the model cannot be run: {first_line(error)}")
    if not any("query" in seen or "scores" in seen for seen in run.attention.values()):
        return _nothing("unknown", "no attention of tokens to one another was seen in a small copy")
    acting = {place: kind for place, seen in run.attention.items() if (kind := _kind_inside(seen)) != "none"}
    added = [stack for stack in stacks if _differs(run.entered[stack])]
    if not acting and not added:
        repeated = f"one token repeated {LENGTHS[0]} times"
        return _nothing("none", f"{repeated}: nothing differs between positions, before the layers or in them")
    found = _inside(run, acting, before=bool(added)) if acting else _before(run, added)
    held = {table.name: values(table.name) for table in found.tables}
    if not held or not all(tensor is not None and bool((tensor == tensor[:1]).all()) for tensor in held.values()):
        return found
    alike = f"but in this model all rows of {' and '.join(held)} are the same, so that positions are not told"
    return _nothing("none", *found.evidence, alike, tables=found.tables)


def _nothing(kind: PositionKind, *evidence: str, **facts: Any) -> PositionEncoding:
    return PositionEncoding(kind=kind, applied="nowhere" if kind == "none" else UNKNOWN, evidence=evidence, **facts)


class _Experiment(TorchFunctionMode):
    """A small copy of a model that reads one token at every position, and what it computes meanwhile.

    What is watched are calls of torch and not names of modules. Queries, keys, values `[…, time, head_size]` and scores
    `[…, time, time]` are those of a layer's attention to its own sequence.
    """

    def __init__(self, model: PreTrainedModel, stacks: Mapping[str, str]) -> None:
        super().__init__()
        self.model, self.copy = model, miniature(model.config)
        self.lengths = dict(zip(stacks, LENGTHS, strict=False))
        self.depths, self.copied = depths(model, stacks), depths(self.copy, stacks)
        for place, layer in placed_layers(self.copy, stacks):
            layer.register_forward_pre_hook(partial(self._enter, place), with_kwargs=True)
            layer.register_forward_hook(self._leave)

    def read(self, dtype: torch.dtype) -> None:
        """Run the copy once, and forget what was seen before."""
        self.place: Place | None = None
        self.entered: dict[str, Tensor] = {}
        self.attention: dict[Place, dict[str, Tensor]] = {}
        self.by_position: list[tuple[nn.Parameter, Tensor]] = []  # tables before the layers, and the rows taken
        self.by_distance: list[tuple[nn.Parameter, Place | None]] = []
        ids = [torch.full((1, length), 5) for length in self.lengths.values()]
        with torch.no_grad(), self:
            self.copy.to(dtype)(**dict(zip(("input_ids", "decoder_input_ids"), ids, strict=False)))  # type: ignore[arg-type]

    def table(self, weight: nn.Parameter, stack: str, offset: int = 0) -> PositionTable:
        """A table of the copy, as the model itself has it."""
        name = next(name for name, each in self.copy.named_parameters() if each is weight)
        return PositionTable(name, tuple(self.model.get_parameter(name).shape), offset, stack)

    def _enter(self, place: Place, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.place = place
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        self.entered.setdefault(place[0], hidden[0])
        same = hidden[:, :1].expand_as(hidden).clone()
        return ((same, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": same})

    def _leave(self, *_: Any) -> None:
        self.place = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "embedding" and isinstance(args[1], nn.Parameter):
            self._look_up(args[1], args[0])
        elif self.place is not None and name in ("matmul", "__matmul__", "bmm", "baddbmm", "softmax"):
            tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
            self._attend(self.attention.setdefault(self.place, {}), self.lengths[self.place[0]], *tensors[-2:])
        return out

    def _look_up(self, weight: nn.Parameter, rows: Tensor) -> None:
        differ = bool((rows != rows.flatten()[:1]).any())
        square = rows.dim() > 1 and rows.shape[-1] == rows.shape[-2]
        if differ and square and torch.equal(rows[..., 1:, 1:], rows[..., :-1, :-1]):
            self.by_distance.append((weight, self.place))
        elif differ and self.place is None:
            self.by_position.append((weight, rows))

    def _attend(self, seen: dict[str, Tensor], time: int, left: Tensor, right: Tensor | None = None) -> None:
        """Queries by keys give `[time, time]`; weights `[time, time]` by values give `[time, head_size]`."""
        if right is None:
            if left.shape[-2:] == (time, time):
                seen.setdefault("scores", left)
        elif left.shape[-2:] == (time, time):
            seen |= {"value": right} if right.shape[-2] == time else {}
        elif left.shape[-2] == time == right.shape[-1] and "query" not in seen:
            seen |= {"query": left, "key": right.mT}


def _differs(rows: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether the rows `[…, time, size]` differ between positions."""
    return bool((rows - rows[..., :1, :]).abs().max() > tolerance * rows.abs().max().clamp_min(1e-12))


def _kind_inside(seen: Mapping[str, Tensor]) -> PositionKind:
    """What positions did in a layer that read one vector at all of them."""
    pair = [seen[name] for name in ("query", "key") if name in seen]
    if any(_differs(rows) for rows in pair):
        kept = not any(_differs(rows.norm(dim=-1, keepdim=True), 1e-3) for rows in pair)
        return "rotary" if kept and all(_differs(rows) for rows in pair) else "unknown"
    if "scores" not in seen:
        return "none"
    last = seen["scores"].flatten(0, -3)[:, -1, :, None]
    if bool((last < HIDDEN).any()) or not _differs(last):
        return "none"
    is_line = last.diff(dim=1).diff(dim=1).abs().max() <= 1e-3 * (last - last[:, :1]).abs().max()
    return "alibi" if is_line else "relative_bias"


def _inside(run: _Experiment, acting: Mapping[Place, PositionKind], *, before: bool) -> PositionEncoding:
    """What positions do inside attention, and whether they were added before it as well."""
    # A copy has fewer layers only where none of them has settings of its own: the others are as its last one.
    layers = {
        stack: tuple(index for index in range(depth) if (stack, min(index, run.copied[stack] - 1)) in acting)
        for stack, depth in run.depths.items()
    }
    parts = [f"{len(own)} of the {run.depths[stack]} layers of the {stack}" for stack, own in layers.items() if own]
    everywhere = all(len(own) == run.depths[stack] for stack, own in layers.items())
    where = "every layer" if everywhere else " and ".join(parts)
    entering = "one token repeated: nothing differs between positions before the first layer"
    if before:
        entering = "what comes into the first layer differs between positions as well"
    first, kind = next(iter(acting.items()))
    applied = f"inside attention, added to the scores, in {where}"
    alike = "inside attention, queries and keys of one vector are alike, and their scores differ with the position"
    line = "by the same amount from one position to the next, each head by its own: a line, not learned"
    evidence, facts = [alike, line], dict[str, Any]()
    if kind == "rotary":
        applied = f"inside attention, to queries and keys, in {where}"
        evidence, facts = _turning(run.attention[first], run.model.config)
    elif kind == "relative_bias":
        tables, facts = _biases(run)
        evidence = [alike, *tables]
    elif kind == "unknown":
        applied = UNKNOWN
        evidence = ["inside attention, queries or keys of one vector differ with the position, and not by a turn"]
    return PositionEncoding(kind=kind, applied=applied, layers=layers, evidence=(entering, *evidence), **facts)


def _turning(seen: Mapping[str, Tensor], config: PreTrainedConfig) -> Found:
    """How much of each head turns, and whether by the theta of the config.

    The second of h pairs turns by θ^(-1/h) a position, unless wavelengths are stretched. A pair is a number of the
    first half with its fellow of the second (Llama), or two neighbours (GPT-J).
    """
    theta, scaling = _rope_settings(config)
    heads = seen["query"].flatten(0, -3)
    moves = ((heads - heads[:, :1]).abs().amax(dim=(0, 1)) > TOLERANCE * heads.abs().max()).nonzero().flatten()
    share, half = len(moves) / heads.shape[-1], len(moves) // 2
    values = "" if "value" not in seen else f"; values {'differ too' if _differs(seen['value']) else 'do not differ'}"
    evidence = [
        "inside attention, queries and keys of one vector differ between positions and keep their length: they are "
        f"turned ({'all' if share == 1 else f'{share:.0%}'} of each head){values}"
    ]
    if half > 1 and scaling is None and isinstance(theta, float):
        turning = heads[0, :2][:, moves]
        pairs = (torch.complex(turning[:, one], turning[:, other]) for one, other in ((1, half + 1), (2, 3)))
        angles = (float((after / before).angle().abs()) for before, after in pairs)
        angle = next((angle for angle in angles if abs(angle * theta ** (1 / half) - 1) < 1e-4), None)
        if angle is not None:
            turn = f"the second pair of a head turns by {angle:.4f} rad a position"
            evidence.append(f"{turn}, which makes theta {theta:,g}")
    return evidence, {"theta": theta, "scaling": scaling, "turned_share": share}


def _rope_settings(config: PreTrainedConfig) -> tuple[float | Mapping[str, float] | None, Mapping[str, Any] | None]:
    """Theta and scaling as the config has them; each by the kind of layer where kinds differ."""
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {kind: each for kind, each in settings.items() if isinstance(each, dict) and "rope_theta" in each}
    kinds = kinds or {"": settings}
    thetas = {kind: float(each["rope_theta"]) for kind, each in kinds.items() if each.get("rope_theta")}
    scaled = {kind: each for kind, each in kinds.items() if each.get("rope_type", "default") != "default"}
    scaling = {kind: {key: each[key] for key in each if key != "rope_theta"} for kind, each in scaled.items()}
    theta = thetas if len(set(thetas.values())) > 1 else next(iter(thetas.values()), None)
    return theta, scaling.get("", scaling) or None


def _biases(run: _Experiment) -> Found:
    """The tables that are looked up by distance: which layers look one up, and which add it."""
    evidence, tables = [], []
    first = next(iter(run.depths))  # the stack of a table that is looked up before the layers
    for stack in run.depths:
        own = [(run.table(weight, stack), at) for weight, at in run.by_distance if (at[0] if at else first) == stack]
        if own:
            table, at = own[0]
            where = f"in layer {at[1]} of the {stack} alone" if at else f"once, before the layers of the {stack}"
            shared = f" {where}, and every layer adds it: one table that all of them share"
            apart = f", and each layer of the {stack} has such a table of its own"
            told = f"{table.name} ({table.shape[0]} distances × {table.shape[1]} heads) is looked up by distance"
            evidence.append(told + (apart if len({at for _, at in own}) > 1 else shared))
        tables += [table for table, _ in own]
    return evidence, {"tables": tuple(tables)}


def _before(run: _Experiment, stacks: Sequence[str]) -> PositionEncoding:
    """What is added before the first layer: by a table, if the difference is gone once that is emptied."""
    evidence = [
        f"one token repeated: what comes into the first layer of {' and of '.join(f'the {stack}' for stack in stacks)} "
        "differs between positions, and within the layers nothing else does"
    ]
    looks = run.by_position
    kind: PositionKind = "sinusoidal"
    facts: dict[str, Any] = {}
    tables = tuple(run.table(each, stack, int(rows.min())) for (each, rows), stack in zip(looks, stacks, strict=False))
    sines = all(_is_sines(weight[torch.unique(rows)]) for weight, rows in looks)
    for weight, _ in looks:
        weight.data.zero_()
    run.read(run.entered[stacks[0]].dtype)
    if not looks or any(_differs(run.entered[stack]) for stack in stacks):
        evidence.append("no table of the model holds that difference: it is computed, and not learned")
    else:
        limit = min(table.shape[0] - table.offset for table in tables)
        kind, facts = "sinusoidal" if sines else "learned", {"limit": limit, "tables": tables}
        names = " and ".join(dict.fromkeys(table.name for table in tables))
        fixed = "two rows are as far apart as their positions are, whichever they are: sines and cosines, "
        learned = f"its rows follow no rule: they are learned, and there is none after position {limit - 1:,}"
        evidence += [f"with {names} emptied the difference is gone", f"{fixed}which are fixed" if sines else learned]
    return PositionEncoding(kind=kind, applied="once, added before the first layer", evidence=tuple(evidence), **facts)


def _is_sines(rows: Tensor) -> bool:
    """Whether the distance of two rows depends only on how many positions lie between them."""
    distances = torch.cdist(rows.detach().double(), rows.detach().double())
    steps = [distances.diagonal(step) for step in range(1, len(rows))]
    return all(bool((step - step[0]).abs().max() <= 1e-3 * distances.max()) for step in steps)

"""What a model does with positions, seen while it runs.

It works on calls of torch, not on names of modules, so that a model cannot be mistaken for another.

Every layer is given the same vector at each position. Whatever still differs between positions inside it comes from
positions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["TOLERANCE", "Attention", "Lookup", "Run", "differs", "watched"]

TOLERANCE = 1e-6
"""Relative. A copy in float64 computes what does not depend on positions alike to 1e-7, where a norm or a softmax is in
float32."""

PRODUCTS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
ADDED_PRODUCTS = {torch.baddbmm, Tensor.baddbmm}
SOFTMAXES = {torch.nn.functional.softmax, torch.softmax, Tensor.softmax}

Place = tuple[str, int]
"""A layer: its stack and its index in it."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """One look into a table of embeddings.

    Attributes:
        weight: The table, `[rows, width]`.
        rows: Which rows were taken, of any shape.
        place: The layer that looked; None before and after the layers.
    """

    weight: Tensor
    rows: Tensor
    place: Place | None

    @property
    def by_position(self) -> bool:
        """Whether other rows are taken at other positions, though the token is the same."""
        return self.rows.numel() > 1 and bool((self.rows != self.rows.flatten()[0]).any())

    @property
    def by_distance(self) -> bool:
        """Whether the row depends on how far apart two positions are, and on nothing else."""
        if self.rows.dim() < 2 or self.rows.shape[-1] != self.rows.shape[-2] or not self.by_position:
            return False
        square = self.rows.flatten(0, -3)[0] if self.rows.dim() > 2 else self.rows
        return torch.equal(square[1:, 1:], square[:-1, :-1])


@dataclass(eq=False)
class Attention:
    """What one layer's attention to its own sequence multiplied, where it was seen.

    Attributes:
        query: `[…, time, head_size]`.
        key: `[…, time, head_size]`.
        value: `[…, time, head_size]`.
        scores: `[…, time, time]`, as they reach the softmax; what is hidden is very negative.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    scores: Tensor | None = None


@dataclass(eq=False)
class Run:
    """One run of a model over the same token at every position.

    Attributes:
        entered: What came into the first layer of each stack, `[time, hidden]`.
        attention: What each layer multiplied.
        lookups: Every look into a table, in order.
    """

    entered: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[Place, Attention] = field(default_factory=dict)
    lookups: list[Lookup] = field(default_factory=list)


def differs(rows: Tensor) -> bool:
    """Whether the rows `[…, time, size]` differ between positions."""
    size = rows.abs().max().clamp_min(1e-12)
    return bool((rows - rows[..., :1, :]).abs().max() > TOLERANCE * size)


def watched(model: nn.Module, stacks: Mapping[str, Sequence[nn.Module]], lengths: Mapping[str, int]) -> Run:
    """Run `model` over one repeated token and tell what was seen.

    Args:
        model: In eval mode, attending by plain products.
        stacks: The layers of each stack, by its name.
        lengths: How many tokens each stack reads; different ones keep a decoder's own attention apart from that to
            the encoder.
    """
    run = Run()
    watch = _Watch(run, lengths)
    ids = {stack: torch.full((1, length), 5) for stack, length in lengths.items()}
    inputs = {"input_ids": next(iter(ids.values()))}
    if len(ids) > 1:
        inputs["decoder_input_ids"] = ids["decoder"]
    with _hooked(watch, stacks), torch.no_grad(), watch:
        model(**inputs)
    return run


class _Watch(TorchFunctionMode):
    """Sees every call of torch, and notes those that matter."""

    def __init__(self, run: Run, lengths: Mapping[str, int]) -> None:
        super().__init__()
        self.run = run
        self.lengths = lengths
        self.place: Place | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        if func is torch.nn.functional.embedding:
            self.run.lookups.append(Lookup(args[1], args[0], self.place))
        elif self.place is not None and func in PRODUCTS:
            self._product(self.place, args[0], args[1])
        elif self.place is not None and func in ADDED_PRODUCTS:
            left, right = args[1:3] if len(args) > 2 else (named["batch1"], named["batch2"])
            self._product(self.place, left, right)
        elif self.place is not None and func in SOFTMAXES:
            self._softmax(self.place, args[0])
        return out

    def _product(self, place: Place, left: Tensor, right: Tensor) -> None:
        """Queries by keys give `[time, time]`; weights `[time, time]` by values give `[time, head_size]`."""
        time = self.lengths[place[0]]
        seen = self.run.attention.setdefault(place, Attention())
        if left.shape[-2:] == (time, time):
            seen.value = right if right.shape[-2] == time else seen.value
        elif left.shape[-2] == time == right.shape[-1] and seen.query is None:
            seen.query, seen.key = left, right.transpose(-1, -2)

    def _softmax(self, place: Place, scores: Tensor) -> None:
        time = self.lengths[place[0]]
        seen = self.run.attention.setdefault(place, Attention())
        if scores.shape[-2:] == (time, time) and seen.scores is None:
            seen.scores = scores


@contextmanager
def _hooked(watch: _Watch, stacks: Mapping[str, Sequence[nn.Module]]) -> Iterator[None]:
    """While it lasts, the watch knows which layer runs, and every layer reads one vector at all positions."""
    handles = []

    def entering(place: Place) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            watch.place = place
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            watch.run.entered.setdefault(place[0], hidden[0])
            same = hidden[:, :1].expand_as(hidden).clone()
            return ((same, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": same})

        return hook

    def leaving(*_: Any) -> None:
        watch.place = None

    for stack, layers in stacks.items():
        for index, layer in enumerate(layers):
            handles.append(layer.register_forward_pre_hook(entering((stack, index)), with_kwargs=True))
            handles.append(layer.register_forward_hook(leaving))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

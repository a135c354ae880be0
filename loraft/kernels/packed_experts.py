"""Experts of a mixture in 4 bits: a tensor that holds all of them is dequantized while its module computes.

The module keeps a parameter of the same name and shape that takes no memory and holds NaN, so that whatever goes by
names and shapes, such as peft, finds it. What its products need in the backward pass is not kept either: it is
dequantized again, of the experts that a product was of.

bitsandbytes' own way (`bitsandbytes.nn.parametrize`) keeps every dequantized tensor until the backward pass, and
peft's updates of parameters, which are parametrizations too, do not come off again from such a one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from loraft.kernels.cpu_dequantize import read_blocks_across_rows
from loraft.kernels.pieces import Run, spans

BLOCK, CONSTANTS_BLOCK = 64, 256
"""Weights that share a constant, and constants that share one when they are quantized too."""
Factors = tuple[Tensor, Tensor, float]
"""An update of each expert: `[experts, …, rank]`, `[experts, rank, …]`, and what their product is multiplied by."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor of experts in 4 bits.

    Attributes:
        codes: `[experts, half the numbers of one]`, two numbers a byte.
        scales: `[experts, blocks of one]`: the constants, in float32 or quantized.
        shape: `[experts, …, …]`.
        dtype: What it is dequantized to, and was quantized from.
        nested: What the constants are quantized by, and their mean; None where they are not.
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    nested: tuple[Any, Tensor] | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is held."""
        of_nested = () if self.nested is None else (self.nested[0].absmax, self.nested[1])
        return (self.codes, self.scales, *of_nested)

    def with_plain_constants(self) -> Packed:
        """The same with constants that are not quantized."""
        from bitsandbytes import functional as bnb

        if self.nested is None:
            return self
        state, mean = self.nested
        return replace(self, scales=bnb.dequantize_blockwise(self.scales, state) + mean, nested=None)

    def value(self, experts: slice = slice(None)) -> Tensor:
        """The matrices of some experts, dequantized: `[experts, …, …]`."""
        from bitsandbytes import functional as bnb

        read_blocks_across_rows()
        codes, scales = self.codes[experts], self.with_plain_constants().scales[experts].flatten()
        shape = torch.Size((len(codes), *self.shape[1:]))
        settings = {"blocksize": BLOCK, "quant_type": self.kind, "dtype": self.dtype}
        state = bnb.QuantState(scales, shape, **settings)  # type: ignore[no-untyped-call]
        whole: Tensor = bnb.dequantize_4bit(codes.reshape(-1, 1), state)
        return whole


def is_packable(shape: Sequence[int]) -> bool:
    """Whether no two experts of a tensor `[experts, …, …]` would share a block."""
    return len(shape) == 3 and shape[1] * shape[2] % BLOCK == 0


def pack(weight: Tensor, kind: str, *, double_quant: bool, dtype: torch.dtype | None = None, run: Run = map) -> Packed:
    """Quantize a tensor of experts to `nf4` or `fp4`, some at a time: to the bit what quantizing all at once is.

    It is quantized from `dtype`, or else from its own; `run` makes the pieces.

    Source: bitsandbytes' `functional.quantize_4bit`.
    """
    from bitsandbytes import functional as bnb

    dtype = dtype or weight.dtype

    def quantize(experts: slice) -> tuple[Tensor, Tensor]:
        piece = weight[experts].to(dtype)
        codes, state = bnb.quantize_4bit(piece.flatten(), blocksize=BLOCK, quant_type=kind)
        return codes.view(len(piece), -1), state.absmax.view(len(piece), -1)

    codes, scales = map(torch.cat, zip(*run(quantize, spans(weight.shape)), strict=True))
    nested = None
    if double_quant:
        mean = scales.mean()
        scales, state = bnb.quantize_blockwise(scales - mean, blocksize=CONSTANTS_BLOCK)
        nested = state, mean
    return Packed(codes, scales, tuple(weight.shape), dtype, kind, nested)


def placeholder(packed: Packed) -> nn.Parameter:
    """A parameter of the size of a packed tensor that takes no memory, and that no product goes well with."""
    nothing = torch.full((1,), torch.nan, dtype=packed.dtype, device=packed.codes.device)
    return nn.Parameter(nothing.expand(packed.shape), requires_grad=False)


@dataclass(eq=False)
class _Held:
    """What a packed tensor and the updates of the moment come to, and that it is not to be kept."""

    packed: Packed
    updates: Sequence[Factors] = ()
    storage: int = field(default=0, init=False)

    def value(self, experts: slice = slice(None)) -> Tensor:
        """The matrices of some experts, with their updates; in the dtype that they are stored for, as in peft."""
        whole = self.packed.value(experts)
        with torch.autocast(whole.device.type, enabled=False):
            for left, right, scale in self.updates:
                whole = torch.baddbmm(whole, left[experts], right[experts], alpha=scale)
        return whole

    def again(self, size: torch.Size, stride: tuple[int, ...], offset: int) -> Tensor:
        """A view of the value, dequantized anew: of the experts alone that it reaches into."""
        of_one = self.packed.shape[1] * self.packed.shape[2]
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        first = offset // of_one
        with torch.no_grad():
            value = self.value(slice(first, last // of_one + 1))
        return value.as_strided(size, stride, offset - first * of_one)


class PackedExperts(nn.Module):
    """What a module of experts becomes, before its own class, once tensors of it are packed.

    Attributes:
        packed: These, by the names of their parameters.
        updates: Those that act while it computes; whoever adds some takes them away again.
        recomputed: Whether the layer around it is computed again in the backward pass, and keeps nothing by itself.
    """

    packed: dict[str, Packed]
    updates: dict[str, Sequence[Factors]]
    recomputed: bool

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """That of the module's own class, with dequantized tensors in place of the parameters."""
        held = {name: _Held(packed, self.updates.get(name, ())) for name, packed in self.packed.items()}
        values = {name: each.value() for name, each in held.items()}
        self.__dict__.update(values)  # is looked up before parameters are
        kept_out = torch.is_grad_enabled() and not self.recomputed
        try:
            with _not_keeping(held, values) if kept_out else nullcontext():
                return super().forward(*arguments, **named)
        finally:
            for name in values:
                del self.__dict__[name]


def _not_keeping(held: Mapping[str, _Held], values: Mapping[str, Tensor]) -> saved_tensors_hooks:
    """A context in which no value, and no view of one, is kept for the backward pass."""
    by_storage = {value.untyped_storage().data_ptr(): held[name] for name, value in values.items()}

    def keep(tensor: Tensor) -> Any:
        found = by_storage.get(tensor.untyped_storage().data_ptr())
        return tensor if found is None else (found, tensor.size(), tensor.stride(), tensor.storage_offset())

    def give(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        found, *place = kept
        again: Tensor = found.again(*place)
        return again

    return saved_tensors_hooks(keep, give)


def hold(module: nn.Module, name: str, packed: Packed) -> None:
    """Let a module compute with a packed tensor in place of its parameter `name`."""
    if not isinstance(module, PackedExperts):
        kind = type(module)
        module.__class__ = type(f"Packed{kind.__name__}", (PackedExperts, kind), {})
        module.packed, module.updates, module.recomputed = {}, {}, False  # type: ignore[assignment]
    packed_module: Any = module
    packed_module.packed[name] = packed
    setattr(module, name, placeholder(packed))


def let_go(module: PackedExperts, dtype: torch.dtype) -> None:
    """Make a module an ordinary one again, with the numbers that its packed tensors stand for."""
    packed = module.packed
    for name, each in packed.items():
        setattr(module, name, nn.Parameter(each.value().to(dtype), requires_grad=False))
    del module.packed, module.updates, module.recomputed
    module.__class__ = type(module).__bases__[1]

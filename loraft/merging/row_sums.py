"""Whether a merged model has the weights of the adapted one, tensor by tensor: told by the sum of each row.

Outputs alone do not show a module that was left out, where rounding to 16 bits moves them as much, nor rows that the
text does not reach, such as positions beyond it. The sums are some thousandth of a model, so that the two models need
not be in memory together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraft.adapters.effect import merged
from loraft.adapters.inject import AdaptedModel
from loraft.kernels.linear_weights import is_quantized, unpacked
from loraft.kernels.packed_experts import PackedExperts

ROWS_AT_ONCE = 1024
SUMMED = 4 * torch.finfo(torch.float32).eps
"""What a sum in float32 may be off, in proportion to the sum of what is summed without signs."""


@dataclass(frozen=True)
class RowSums:
    """The weights that a model should have.

    Attributes:
        sums: Of each tensor, by its name, the sum of each row, float64 and on the CPU.
        dtype: What the numbers are rounded to.
        eps: That of the coarsest dtype that they went through; the largest number of a row may be its neighbour there,
            which the order of a sum can cause.
    """

    sums: Mapping[str, Tensor]
    dtype: torch.dtype
    eps: float

    def others(self, model: nn.Module) -> list[str]:
        """The tensors that `model` has other numbers in, or not at all."""
        found = dict(_tensors(model))
        return [name for name, sums in self.sums.items() if name not in found or not self._is(sums, found[name])]

    def _is(self, sums: Tensor, tensor: Tensor) -> bool:
        if len(sums) != len(_rows(tensor)):
            return False
        expected = torch.split(sums.to(tensor.device), ROWS_AT_ONCE)
        for part, wanted in zip(_parts(tensor, self.dtype), expected, strict=True):
            found = part.sum(-1, dtype=torch.float64)
            same = (found == wanted) | ((found - wanted).abs() <= self._allowed(part))  # infinities of a mask are equal
            if not same.all():
                return False
        return True

    def _allowed(self, rows: Tensor) -> Tensor:
        size = rows.abs()
        return self.eps * size.amax(-1) + SUMMED * size.sum(-1, dtype=torch.float64)


def sums_of_merged(adapted: AdaptedModel, dtype: torch.dtype, before: Collection[torch.dtype]) -> RowSums:
    """The sums of a base with all its adapters in it, in `dtype` at last; `before` its numbers went through others.

    It is used up: a weight is let go once it is summed, so that no second model comes to be.
    """
    made: dict[str, Tensor] = {}

    def summed(name: str, owner: nn.Module, called: str) -> None:
        weight = owner.get_parameter(called)
        made[name] = _sums(_as_multiplied(owner, called, weight), dtype)
        setattr(owner, called, nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False))

    base = merged(adapted, *adapted.names, dtype=dtype, folded=summed)
    made |= {name: _sums(tensor, dtype) for name, tensor in _tensors(base) if tensor.numel() and not tensor.is_meta}
    eps = max(torch.finfo(each).eps for each in {dtype, *before})
    return RowSums(made, dtype, eps)


def _sums(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat([part.sum(-1, dtype=torch.float64) for part in _parts(tensor, dtype)]).cpu()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights and the kept buffers of a model, one module's at a time, that are floating numbers."""
    for path, module in model.named_modules():
        packed = dict(module.packed) if isinstance(module, PackedExperts) else {}
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            called = f"{path}.{name}" if path else name
            kept = tensor.is_floating_point() and name not in module._non_persistent_buffers_set
            if name in packed:
                yield called, packed[name].value()
            elif name in ("weight", "bias") if is_quantized(module) else kept:  # without the constants of few bits
                yield called, _as_multiplied(module, name, tensor)


def _as_multiplied(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A linear module's weight is `[out, in]`, however it is stored: GPT-2's is transposed, but not in 4 bits."""
    return unpacked(module) if name == "weight" and isinstance(module, nn.Linear | Conv1D) else tensor.detach()


def _rows(tensor: Tensor) -> Tensor:
    """`[…, width]` to `[rows, width]`; each number of a vector is a row."""
    return tensor.reshape(-1, tensor.shape[-1] if tensor.dim() > 1 else 1)


def _parts(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """A tensor some rows at a time, in float32, with its numbers as they are in `dtype`."""
    return (part.to(dtype).float() for part in torch.split(_rows(tensor), ROWS_AT_ONCE))

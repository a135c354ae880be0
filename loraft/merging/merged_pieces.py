"""What a merge makes of one tensor of the base, in pieces."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraft.adapters.effect import Run, cast_pieces, pieces_with_rows, updated_pieces
from loraft.config.sections import QuantizationSection
from loraft.errors import NonFiniteError
from loraft.kernels.packed_experts import pack
from loraft.merging.prepare_merge import Merge
from loraft.merging.quantize_roundtrip import quantize_roundtrip


def merged_pieces(merge: Merge, name: str, weight: Tensor, dtype: torch.dtype, run: Run = map) -> Iterable[Tensor]:
    """The tensor that the model calls `name`, and whose numbers in the base are `weight`, as the result has it.

    Raises:
        NonFiniteError: While iterating: it holds NaN or infinity.
    """
    plan, looked_at = merge.plan, checked(run, name)
    if name in plan.replaced:
        return cast_pieces(plan.replaced[name], dtype, run=looked_at)
    if merge.storage is not None:
        weight = _as_trained(merge, merge.storage, name, weight, run)
    if name in plan.updates:
        return updated_pieces(weight, plan.updates[name], dtype, transposed=name in plan.transposed, run=looked_at)
    if name in plan.rows:
        return pieces_with_rows(weight, *plan.rows[name], dtype, run=looked_at)
    if name in plan.added:
        return cast_pieces(torch.stack([weight.float(), *plan.added[name]]).sum(0), dtype, run=looked_at)
    if name in merge.grown:  # what is added to the logits, and nothing for a new token
        weight = pad(weight, (0, merge.grown[name][-1] - weight.shape[-1]))
    return cast_pieces(weight, dtype, run=looked_at)


def _as_trained(merge: Merge, storage: QuantizationSection, name: str, weight: Tensor, run: Run) -> Tensor:
    """A tensor of the base as a model that stores it quantized computes with it."""
    dtype = merge.trained_dtype or merge.dtype
    if name not in merge.quantized:
        return weight.to(dtype)
    if weight.dim() == 3:
        return pack(weight.to(dtype), storage.type, double_quant=storage.double_quant).value()
    if name in merge.plan.transposed:
        return quantize_roundtrip(weight.T, storage, dtype, run=run).T
    return quantize_roundtrip(weight, storage, dtype, run=run)


def checked(run: Run, name: str) -> Run:
    """Makes pieces as `run` does, and looks at each before it is given on."""

    def finite(piece: Tensor) -> Tensor:
        # The sum is quick, and finite where every number is, unless they are huge.
        if not bool(torch.isfinite(piece.sum())) and not bool(torch.isfinite(piece).all()):
            remedy = "Its numbers are too large for float16: use bfloat16." if piece.dtype == torch.float16 else None
            raise NonFiniteError(f"the merged tensor {name} holds NaN or infinity", remedy=remedy)
        return piece

    return lambda work, spans: run(lambda span: finite(work(span)), spans)

"""DoRA whose norms are computed from A and B, and not from the update that they make.

peft multiplies an identity of `[in, in]` through both at each step, and adds the product to the weight: three matrices
as large as the weight, and the identity, for one number a row.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from loraft.kernels.linear_weights import unpacked
from loraft.kernels.low_rank.started_factor import factor_of


class FactoredDora(DoraLinearLayer):
    """The magnitudes of a linear module, and what they make of its output.

    Attributes:
        base_squared: ‖W‖² of each row of the base's weight, `[out]` in float32, which no step changes; None until it
            is needed for the first time.
        kept_norms: The norms of the last forward pass, where they are kept, and `made_of` what.
    """

    base_squared: Tensor | None
    kept_norms: Tensor | None = None
    made_of: tuple[object, ...] | None = None

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: nn.Linear,  # noqa: N803 (peft's name)
        lora_B: nn.Linear,  # noqa: N803 (peft's name)
        scaling: float,
        base_layer: nn.Module,
        base_result: Tensor | None = None,
        adapter_name: str = "default",
    ) -> Tensor:
        """What DoRA adds to the output of the base, `[…, out]`.

        With W the base's weight and ΔW = scaling · B A, each output is that of (W + ΔW) times m / ‖W + ΔW‖ of its row.
        `base_result` is x Wᵀ and the bias; where it is None, as with dropout, x Wᵀ is computed here. In evaluation mode
        the norms of an adapter that nothing trains are kept until A or B are others. In a run they are made anew: there
        weights change in ways that PyTorch does not count.

        Source: Liu et al. 2024, DoRA, equation 5 and section 4.3, by which the norm gets no gradient
        (https://arxiv.org/abs/2402.09353).
        """
        made_of: tuple[object, ...] | None = None
        if keeps := not (self.training or lora_A.weight.requires_grad):
            made_of = (scaling, *((factor.weight.data_ptr(), factor.weight._version) for factor in (lora_A, lora_B)))
        norms = self.kept_norms if keeps and self.made_of == made_of else None
        if norms is None:
            norms = self.norms(base_layer, lora_A, lora_B, scaling, x.dtype)
        self.kept_norms, self.made_of = norms if keeps else None, made_of
        by_output = self.weight / norms
        if base_result is None:
            base_result = linear(x, unpacked(base_layer).to(x.dtype))
        elif isinstance(base_layer.bias, Tensor):
            base_result = base_result - base_layer.bias
        of_base, of_update = (by_output - 1).to(base_result.dtype), (by_output * scaling).to(base_result.dtype)
        return torch.addcmul(of_base * base_result, of_update, lora_B(lora_A(x)))

    def norms(
        self,
        base: nn.Module,
        lora_A: nn.Module,  # noqa: N803 (peft's name)
        lora_B: nn.Module,  # noqa: N803 (peft's name)
        scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """`row_norms` of the base's weight and its update, with products in `dtype`."""
        weight = unpacked(base)
        if self.base_squared is None:
            self.base_squared = row_lengths(weight).square()
        return row_norms(weight.to(dtype), self.base_squared, factor_of(lora_A), factor_of(lora_B), scaling)


@torch.no_grad()
def row_lengths(weight: Tensor) -> Tensor:
    """`[out]`, the length of each row of a weight `[out, in]`, in float32."""
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    return lengths


@torch.no_grad()
def row_norms(weight: Tensor, squared: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`[out]`, the length of each row of W + scale · B A, in float32; W is `[out, in]`, A `[r, in]` and B `[out, r]`.

    With w, b as rows, ‖w‖² as `squared`: ‖w + scale · b A‖² = ‖w‖² + 2 · scale · (w Aᵀ) · b + scale² · (b A Aᵀ) · b.
    Of a row that an update all but takes away rounding leaves anything, so that no length is below √ε ‖w‖, with the ε
    of the weight's dtype.
    """
    with torch.autocast(weight.device.type, enabled=False):
        a, b = a.float(), b.float()
        across = (weight @ a.T.to(weight.dtype)).float()
        moved = squared + (b * torch.addmm(across, b, a @ a.T, beta=2 * scale, alpha=scale**2)).sum(1)
        least = (torch.finfo(weight.dtype).eps * squared).clamp_min(torch.finfo(torch.float32).tiny)
        return moved.maximum(least).sqrt()


def norms_from_factors(model: nn.Module, adapter: str) -> None:
    """Have the linear modules of an adapter with magnitudes compute with these; embeddings stay as peft has them."""
    for module in model.modules():
        magnitudes: Any = getattr(module, "lora_magnitude_vector", {})
        if adapter in magnitudes and type(magnitudes[adapter]) is DoraLinearLayer:
            magnitudes[adapter].__class__ = FactoredDora
            magnitudes[adapter].register_buffer("base_squared", None, persistent=False)

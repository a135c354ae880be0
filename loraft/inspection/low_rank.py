"""The arithmetic of low-rank updates, from their factors.

A product B A is never formed: with B = Q₁ R₁ and Aᵀ = Q₂ R₂ its singular values are those of R₁ R₂ᵀ, which is [r, r].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loraft.adapters.lora_factors import LoraFactors


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The singular values of B A, largest first: float64 `[r]`.

    Args:
        a: `[r, in]`.
        b: `[out, r]`.

    Source: Golub and Van Loan, Matrix Computations, section 5.2: an orthogonal factor leaves singular values alone.
    """
    _, left = torch.linalg.qr(b.double())
    _, right = torch.linalg.qr(a.double().T)
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def effective_rank(singular: Tensor) -> float:
    """Exp of the entropy of the singular values as shares of their sum; 0 where all are zero.

    n equal values give n, one alone gives 1.

    Args:
        singular: `[r]`.

    Source: Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality, EUSIPCO.
    """
    total = singular.sum()
    if not bool(total > 0):
        return 0.0
    shares = singular[singular > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))


def dora_change(weight: Tensor, factors: LoraFactors) -> float:
    """‖W' - W‖ of DoRA, whose rows W'ᵢ = mᵢ (W + ΔW)ᵢ / ‖(W + ΔW)ᵢ‖; ΔW itself is not formed.

    Args:
        weight: W, `[out, in]`.
        factors: With magnitudes m.

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

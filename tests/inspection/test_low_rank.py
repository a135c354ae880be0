"""The arithmetic of low-rank updates, against the dense matrices that it never forms."""

from __future__ import annotations

import math

import pytest
import torch

from loraft.adapters.lora_factors import LoraFactors
from loraft.inspection.adapter_deltas import dora_change, effective_rank, inner_product, singular_values


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_singular_values_are_those_of_the_product() -> None:
    a, b = drawn(3, 20), drawn(11, 3, seed=1)
    dense = torch.linalg.svdvals((b @ a).double())[:3]
    torch.testing.assert_close(singular_values(a, b), dense, atol=1e-5, rtol=1e-5)  # A B was rounded to float32
    a, b = drawn(8, 5), drawn(6, 8, seed=1)  # a rank above the sizes
    torch.testing.assert_close(singular_values(a, b), torch.linalg.svdvals((b @ a).double()), atol=1e-5, rtol=1e-5)


def test_effective_rank_of_equal_single_and_no_values() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(4)) == 0.0
    two_to_one = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert effective_rank(torch.tensor([2.0, 1.0])) == pytest.approx(two_to_one)


def test_the_change_of_dora_is_that_of_the_dense_matrices() -> None:
    w, a, b, m = drawn(7, 9), drawn(2, 9, seed=1), drawn(7, 2, seed=2), drawn(7, seed=3).abs() + 1
    moved = w + 0.5 * b @ a
    after = m[:, None] * moved / moved.norm(dim=1, keepdim=True)
    assert dora_change(w, LoraFactors(a, b, 0.5, m)) == pytest.approx(float((after - w).norm()), rel=1e-5)
    unmoved = LoraFactors(a, torch.zeros(7, 2), 0.5, w.norm(dim=1))
    assert dora_change(w, unmoved) == pytest.approx(0.0, abs=1e-2)  # the root of a rounding error of float32


def test_the_inner_product_of_two_updates() -> None:
    one = LoraFactors(drawn(2, 9), drawn(7, 2, seed=1), 0.5)
    other = LoraFactors(drawn(3, 9, seed=2), drawn(7, 3, seed=3), 2.0)
    dense = (0.5 * one.b.double() @ one.a.double() * (2.0 * other.b.double() @ other.a.double())).sum()
    assert inner_product(one, other) == pytest.approx(float(dense))
    assert inner_product(one, one) == pytest.approx(float((0.5 * singular_values(one.a, one.b)).square().sum()))

"""A beginning that rows share, computed once: what whole rows give, in both directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loraft.kernels.packed_attention import rows_attention
from loraft.kernels.shared_prefix import places_of, shared_prefix, taken_back, written_out

LENGTHS, PREFIX = (5, 3, 6), 2


def test_the_prefix_is_what_all_rows_begin_with_and_leaves_each_a_token() -> None:
    assert shared_prefix([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6]]) == 2
    assert shared_prefix([[1, 2], [1, 2, 3]]) == 1
    assert shared_prefix([[1, 2, 3]]) == 0
    assert shared_prefix([[1, 2], [2, 2]]) == 0
    assert shared_prefix([[1, *range(2, 40)], [1, *range(50, 90)]]) == 0, "one token of 79 is not worth it"


def test_the_places_of_three_rows() -> None:
    in_line, in_rows, beginnings = places_of(LENGTHS, PREFIX)
    assert in_line.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 0, 1, 6, 7, 8, 9]
    assert in_rows.tolist() == [0, 1, 2, 3, 4, 7, 10, 11, 12, 13]
    assert beginnings.tolist() == [0, 1, 5, 6, 8, 9]


def test_the_gradients_are_those_of_copies() -> None:
    line = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tensor: written_out(tensor, LENGTHS, PREFIX), line)
    rows = torch.randn(14, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tensor: taken_back(tensor, LENGTHS, PREFIX), rows)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"sliding_window": 3}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_gives_each_row_what_it_gives_it_whole(options: dict[str, float], dtype: torch.dtype) -> None:
    in_line, in_rows, _ = places_of(LENGTHS, PREFIX)
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int) -> Tensor:
        return torch.randn(1, heads, len(in_rows), 4, generator=generator).to(dtype).requires_grad_()

    line = [drawn(4), drawn(2), drawn(2)]
    out, _ = rows_attention(nn.Module(), *line, None, row_lengths=LENGTHS, shared_prefix=PREFIX, **options)
    wanted = torch.randn(out.shape, generator=generator).to(dtype)
    found = torch.autograd.grad(out, line, wanted)
    exact = [tensor.detach().double().requires_grad_() for tensor in line]
    whole, _ = rows_attention(
        nn.Module(), *(tensor.index_select(2, in_line) for tensor in exact), None, row_lengths=LENGTHS, **options
    )
    right = torch.autograd.grad(whole[:, in_rows], exact, wanted.double())
    near = 1e-5 if dtype == torch.float32 else 3e-2  # of bfloat16 a few of its steps of 2^-8
    torch.testing.assert_close(out.double(), whole[:, in_rows], rtol=near, atol=near)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=near, atol=near)

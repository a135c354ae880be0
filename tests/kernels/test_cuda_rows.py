"""Which kernel of CUDA takes all rows at once. Tensors without data stand for those of a GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from loraft.kernels.cuda_rows import efficient_attention, form_for_rows, row_ends_of, varlen_attention


@pytest.mark.parametrize(
    ("dtype", "head_size", "dropout", "window", "expected"),
    [
        (torch.bfloat16, 64, 0.0, None, varlen_attention),
        (torch.float16, 64, 0.0, 128, varlen_attention),
        (torch.bfloat16, 64, 0.1, None, efficient_attention),
        (torch.float32, 64, 0.0, None, efficient_attention),
        (torch.float32, 64, 0.1, None, efficient_attention),
        (torch.float32, 64, 0.0, 128, None),
        (torch.bfloat16, 64, 0.1, 128, None),
        (torch.bfloat16, 20, 0.1, None, None),
        (torch.float32, 20, 0.0, None, efficient_attention),
        (torch.float64, 64, 0.0, None, None),
    ],
)
def test_a_kernel_is_found_by_dtype_window_and_dropout(
    dtype: torch.dtype, head_size: int, dropout: float, window: int | None, expected: object
) -> None:
    query = torch.empty(7, 2, head_size, dtype=dtype, device="meta")
    form = form_for_rows(query, dropout=dropout, window=window)
    assert (form.func if isinstance(form, partial) else form) is expected
    if isinstance(form, partial):
        assert form.keywords == ({"window": window} if expected is varlen_attention else {"dropout": dropout})


def test_rows_begin_where_the_ones_before_end() -> None:
    ends = row_ends_of([3, 1, 2], torch.device("cpu"))
    assert ends.dtype == torch.int32
    assert ends.tolist() == [0, 3, 4, 6]


def test_keys_are_repeated_for_the_queries_that_share_them() -> None:
    query, key = torch.empty(7, 4, 8, device="meta"), torch.empty(7, 2, 8, device="meta")
    out = efficient_attention(query, key, key, torch.empty(3, dtype=torch.int32, device="meta"), 4, 0.3)
    assert out.shape == query.shape

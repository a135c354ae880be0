"""Which kernel of CUDA takes all rows at once. Tensors without data stand for those of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loraft.kernels import cuda_rows
from loraft.kernels.cuda_rows import efficient_attention, form_for_rows, row_ends_of, varlen_attention


@pytest.mark.parametrize(
    ("dtype", "head_size", "dropout", "window", "expected"),
    [
        (torch.bfloat16, 64, 0.0, None, varlen_attention),
        (torch.float16, 64, 0.0, 128, varlen_attention),
        (torch.bfloat16, 64, 0.1, None, efficient_attention),
        (torch.float32, 64, 0.0, None, efficient_attention),
        (torch.float32, 64, 0.1, None, efficient_attention),
        (torch.float32, 64, 0.0, 128, efficient_attention),
        (torch.bfloat16, 64, 0.1, 128, efficient_attention),
        (torch.bfloat16, 20, 0.1, None, None),
        (torch.float32, 20, 0.0, None, efficient_attention),
        (torch.float64, 64, 0.0, None, None),
    ],
)
def test_a_kernel_is_found_by_dtype_window_and_dropout(
    dtype: torch.dtype, head_size: int, dropout: float, window: int | None, expected: object
) -> None:
    query = torch.empty(7, 2, head_size, dtype=dtype, device="meta")
    form = form_for_rows(query, query, dropout=dropout, window=window)
    assert (form.func if isinstance(form, partial) else form) is expected
    if isinstance(form, partial):
        dropped = {} if expected is varlen_attention else {"dropout": dropout}
        assert form.keywords == dropped | {"window": window}


def test_a_kernel_that_a_gpu_lacks_gives_way_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention is for newer GPUs than a T4, and for values that are as large as keys."""

    def lacked(*_: object, **__: object) -> Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    query = torch.empty(7, 2, 64, dtype=torch.float16, device="meta")
    monkeypatch.setattr(cuda_rows, "varlen_attention", lacked)
    form = form_for_rows(query, query[..., :32], dropout=0.0, window=None)
    assert isinstance(form, partial)
    assert form.func is efficient_attention
    monkeypatch.setattr(cuda_rows, "efficient_attention", lacked)
    assert form_for_rows(query, query, dropout=0.0, window=None) is None


def test_a_kernel_for_which_there_was_no_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    query = torch.empty(7, 2, 48, dtype=torch.float16, device="meta")
    with monkeypatch.context() as patched:
        patched.setattr(cuda_rows, "row_ends_of", full)
        with pytest.raises(torch.OutOfMemoryError):
            form_for_rows(query, query, dropout=0.0, window=None)
    form = form_for_rows(query, query, dropout=0.0, window=None)
    assert isinstance(form, partial)
    assert form.func is varlen_attention


def test_rows_begin_where_the_ones_before_end() -> None:
    ends = row_ends_of([3, 1, 2], torch.device("cpu"))
    assert ends.dtype == torch.int32
    assert ends.tolist() == [0, 3, 4, 6]


def test_keys_are_repeated_for_the_queries_that_share_them() -> None:
    query, key = torch.empty(7, 4, 8, device="meta"), torch.empty(7, 2, 8, device="meta")
    out = efficient_attention(query, key, key, torch.empty(3, dtype=torch.int32, device="meta"), 4, 0.3)
    assert out.shape == query.shape


class Watched(TorchDispatchMode):
    """Notes the window that each kernel of attention is given."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: dict[str, int | None] = {}

    def __torch_dispatch__(self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "efficient_attention" in str(func):
            self.windows[str(func)] = kwargs.get("window_size")
        if "efficient_attention_backward" in str(func):  # what torch 2.13 says of its shapes is not so
            return (*(torch.empty_like(each) for each in args[1:4]), args[1].new_empty(0))
        return func(*args, **kwargs)


@pytest.mark.parametrize("window", [None, 3])
def test_c51_the_backward_pass_knows_the_window(window: int | None) -> None:
    """The derivative that torch has of it leaves it out: gradients would be those of attention to all before."""
    query = torch.empty(7, 4, 8, device="meta", requires_grad=True)
    key, ends = (
        torch.empty(7, 2, 8, device="meta", requires_grad=True),
        torch.empty(3, dtype=torch.int32, device="meta"),
    )
    with Watched() as watched:
        out: Tensor = efficient_attention(query, key, key, ends, 4, 0.3, dropout=0.1, window=window)
        out.sum().backward()
    assert query.grad is not None
    assert key.grad is not None
    assert list(watched.windows.values()) == [window, window]

"""Row-wise attention against the plain formula, values and gradients."""

from __future__ import annotations

import pytest
import torch

from loraft.kernels import packed_attention as attention
from loraft.kernels.packed_attention import attend_rows

LENGTHS = [5, 1, 12, 7]


def tensors(heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(heads, 8), (kv_heads, 8), (kv_heads, 8)]
    return [torch.randn(sum(LENGTHS), *shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, softcap: float | None, window: int | None
) -> torch.Tensor:
    """Each row by itself, a token at a time, as the definition says."""
    groups = query.shape[1] // key.shape[1]
    out, start = [], 0
    for length in LENGTHS:
        q, k, v = (t[start : start + length] for t in (query, key, value))
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        for place in range(length):
            first = 0 if window is None else max(0, place - window + 1)
            scores = torch.einsum("hd,thd->ht", q[place], k[first : place + 1]) * 0.3
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            out.append(torch.einsum("ht,thd->hd", scores.softmax(-1), v[first : place + 1]))
        start += length
    return torch.stack(out)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (2.0, None), (None, 3), (2.0, 3)])
@pytest.mark.parametrize("products", [True, False])
def test_c11_each_row_attends_to_itself_alone(
    heads: int,
    kv_heads: int,
    softcap: float | None,
    window: int | None,
    products: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not products:
        monkeypatch.setattr(attention, "PRODUCTS_UP_TO", {})
    given, wanted = tensors(heads, kv_heads), tensors(heads, kv_heads)
    ours = attend_rows(*given, LENGTHS, 0.3, softcap=softcap, window=window)
    expected = plainly(*wanted, softcap, window)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_bfloat16_products_are_as_close_as_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to 8 bits of mantissa: an error of about 1 %, no more than the library's own kernel."""
    exact = attend_rows(*tensors(6, 2), LENGTHS, 0.3)
    ours = attend_rows(*tensors(6, 2, torch.bfloat16), LENGTHS, 0.3).float()
    monkeypatch.setattr(attention, "PRODUCTS_UP_TO", {})
    library = attend_rows(*tensors(6, 2, torch.bfloat16), LENGTHS, 0.3).float()
    assert (ours - exact).norm() < 1.5 * (library - exact).norm() + 1e-3 * exact.norm()


def test_dropout_drops_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = torch.stack([attend_rows(*tensors(4, 2), LENGTHS, 0.3, dropout=0.5).detach() for _ in range(400)])
    exact = attend_rows(*tensors(4, 2), LENGTHS, 0.3)
    assert dropped.std(0).max() > 0.1
    # The mean of 400 draws lies within four standard errors of the exact value nearly everywhere.
    error = (dropped.mean(0) - exact).abs() / (dropped.std(0) / 20 + 1e-6)
    assert (error < 4).float().mean() > 0.99


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("wide", [(0, 1), (0, 1, 2)])
def test_float32_beside_bfloat16_comes_to_one_dtype_under_autocast(
    products: bool, window: int | None, wide: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary positions give float32 queries and keys where weights are float32: the same as all in 16 bits."""
    if not products:
        monkeypatch.setattr(attention, "PRODUCTS_UP_TO", {})
    given = [t.detach().float() if i in wide else t.detach() for i, t in enumerate(tensors(6, 2, torch.bfloat16))]
    given = [tensor.requires_grad_() for tensor in given]
    narrow = tensors(6, 2, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, expected = (attend_rows(*each, LENGTHS, 0.3, window=window) for each in (given, narrow))
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, expected)
    for out in (ours, expected):
        out.float().sin().sum().backward()
    for mine, theirs in zip(given, narrow, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad.to(torch.bfloat16), theirs.grad)

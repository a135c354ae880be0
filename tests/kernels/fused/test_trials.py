"""A fused form is taken where it gives the numbers of the plain form, and what is not taken is said with the reason."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from loraft.kernels.fused import fuse, trials
from loraft.kernels.fused.forms import plain_gated, plain_rotated
from loraft.kernels.fused.trials import GATED, NO_TRITON, NORMS, ROTARY, difference, faults
from loraft.kernels.rms_norm import plain_norm
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def _anew() -> None:
    faults.cache_clear()


def wrong(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return plain_gated(gate, up, by_gelu=False) * 1.05


def broken(*_: Any) -> None:
    raise RuntimeError("no C compiler\nand more of it")


def test_what_is_off_or_breaks_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = partial(plain_norm, epsilon=1e-6, offset=0.0, rounds=True)
    pairs: Any = {
        NORMS: lambda: [(norm, norm)],
        ROTARY: lambda: [(broken, plain_rotated)],
        GATED: lambda: [(wrong, partial(plain_gated, by_gelu=False))],
    }
    monkeypatch.setattr(trials, "PAIRS", pairs)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    found = faults("cpu", torch.bfloat16)
    assert set(found) == {ROTARY, GATED}
    assert "no C compiler" in found[ROTARY]
    assert "and more" not in found[ROTARY]
    assert "rounding" in found[GATED]
    assert difference(NORMS, "cpu", torch.bfloat16) == 0


def test_without_triton_none_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert faults("cuda", torch.bfloat16) == dict.fromkeys((NORMS, ROTARY, GATED), NO_TRITON)


def test_it_is_said_what_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").requires_grad_(False)
    assert fuse.fuse_chosen(model, "cpu", torch.bfloat16) == []
    monkeypatch.setattr(fuse, "faults", lambda *_: {ROTARY: "off"})
    assert fuse.fuse_chosen(model, "cuda", torch.bfloat16) == [
        "fused kernels, tried on this GPU, compute the norms of 7 modules, the gated products of 3 modules",
        "torch's own operations compute the rotary positions: off",
    ]
    monkeypatch.setattr(fuse, "faults", lambda *_: {})
    assert len(fuse.fuse_chosen(tiny_model("gpt2"), "cuda", torch.bfloat16)) == 0

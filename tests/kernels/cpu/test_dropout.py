"""Dropout by numbers of 16 bits: its share, its factor, its gradient, and that it is repeated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loraft.kernels.cpu.dropout import drawn, patch_dropout


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_much_is_dropped_as_is_asked_for(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    kept, factor = drawn(torch.empty(1000, 1001, dtype=dtype), share)
    assert kept.dtype == dtype
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    # Five standard deviations of the mean of a million draws.
    assert abs(1 - kept.double().mean() - share) < 5 * (share * (1 - share) / kept.numel()) ** 0.5
    assert factor == pytest.approx(1 / (1 - share), rel=1e-4)


def test_a_share_of_almost_all_leaves_one_of_65536() -> None:
    kept, factor = drawn(torch.empty(400_000), 0.999999)
    assert factor == 65536
    assert kept.sum() < 40


def test_neighbours_are_dropped_independently() -> None:
    """Four are decided by one word of 64 bits."""
    torch.manual_seed(2)
    dropped = 1 - drawn(torch.empty(400_000), 0.1)[0].view(-1, 4).double()
    together = dropped.T @ dropped / len(dropped)
    assert torch.allclose(together, torch.full((4, 4), 0.01).double() + torch.eye(4) * 0.09, atol=2e-3)


def test_torchs_generator_repeats_it() -> None:
    like = torch.empty(3, 7)
    state = torch.get_rng_state()
    first, second = (drawn(like, 0.5)[0] for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(drawn(like, 0.5)[0], first)


def test_a_module_drops_in_training_alone_and_what_it_dropped_has_no_gradient() -> None:
    model = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.0))
    patch_dropout(model)
    x = torch.ones(50, 50, requires_grad=True)
    assert torch.equal(model.eval()(x), x)
    out = model.train()(x)
    out.sum().backward()
    assert torch.equal(out, x.grad)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])


def test_what_is_changed_in_place_and_classes_of_others_stay_as_they_are() -> None:
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.5, inplace=True), Own(0.5))
    patch_dropout(model)
    assert [type(module) for module in model] == [nn.Dropout, Own]

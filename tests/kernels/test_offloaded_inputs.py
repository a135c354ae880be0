"""What goes into checkpointed layers, kept on the host: to the bit what checkpointing gives, two at a time here."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loraft.kernels.offloaded_inputs import KeptInputs, _Kept, keep_inputs_on_host

CPU = torch.device("cpu")


def layers(depth: int, width: int = 7) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.5)) for _ in range(depth)]


def run(through: list[nn.Module], x: Tensor, kept: KeptInputs | None) -> Tensor:
    for layer in through:
        x = checkpoint(layer, x, use_reentrant=False) if kept is None else kept.checkpoint(layer, x)
    return x.square().sum()


def gradients(through: list[nn.Module], x: Tensor, kept: KeptInputs | None) -> list[Tensor]:
    torch.manual_seed(1)
    total = sum(run(through, x * factor, kept) for factor in (1.0, 2.0))  # two batches before either goes backward
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, [weight for layer in through for weight in layer.parameters()]))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_gradients_are_those_of_checkpointing(depth: int) -> None:
    through, kept = layers(depth), KeptInputs(CPU)
    for rows in (3, 5, 2):
        x = torch.randn(rows, 7, requires_grad=True)
        pairs = zip(gradients(through, x, kept), gradients(through, x, None), strict=True)
        assert all(torch.equal(mine, other) for mine, other in pairs)


def test_of_all_layers_one_is_left_on_the_device_after_the_forward_pass() -> None:
    through, kept = layers(5, width=13), KeptInputs(CPU)
    x = torch.randn(3, 13, requires_grad=True)
    loss = run(through, x, kept)
    del x
    found = [each for each in gc.get_objects() if type(each) is _Kept]
    assert sorted(each.device_tensor is not None for each in found) == [False] * 4 + [True]
    storages = {each.untyped_storage().data_ptr() for each in gc.get_objects() if _is_state(each)}
    assert len(storages) <= 3, "the leaf, what goes into the last layer, and what the loss reads"
    loss.backward()  # type: ignore[no-untyped-call]


def _is_state(each: object) -> bool:
    return type(each) is Tensor and each.shape == (3, 13) and each.dtype == torch.float32


def test_buffers_are_used_again_after_the_backward_pass_and_where_there_is_none() -> None:
    through, kept = layers(4), KeptInputs(CPU)
    x = torch.randn(3, 7, requires_grad=True)
    for _ in range(3):
        run(through, x, kept).backward()  # type: ignore[no-untyped-call]
        assert len(kept._free) == 4
    run(through, x, kept)
    gc.collect()
    assert len(kept._free) == 4


def test_what_is_given_besides_stays_and_a_layer_without_states_is_checkpointed_as_ever() -> None:
    kept, weight = KeptInputs(CPU), torch.randn(7, requires_grad=True)
    both = kept.checkpoint(lambda x, y: x * y.tanh(), torch.ones(3, 7), weight)
    torch.testing.assert_close(torch.autograd.grad(both.sum(), weight)[0], 3 * (1 - weight.tanh() ** 2))
    assert kept.checkpoint(lambda: 3) == 3


def test_only_layers_that_checkpoint_are_changed() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0]._gradient_checkpointing_func = checkpoint  # type: ignore[assignment]
    keep_inputs_on_host(model, CPU)
    assert "checkpoint" in model[0]._gradient_checkpointing_func.__qualname__
    assert not hasattr(model[1], "_gradient_checkpointing_func")

"""Layers that are fed to the device, on a CPU that is host and device at once: to the bit what they are in place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loraft.kernels.decoding_products import patch_decode_linears
from loraft.kernels.layer_stream import SLOTS, LayerStream
from loraft.kernels.transfer import CopyStream

CPU = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.trained = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.down(torch.relu(self.up(self.norm(x)))) + self.trained(x), None


class Model(nn.Module):
    def __init__(self, depth: int, *, recomputed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(8) for _ in range(depth))
        self.recomputed = recomputed

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = checkpoint(layer, x, use_reentrant=False) if self.recomputed and x.requires_grad else layer(x)
        return x


def pair(depth: int, *, recomputed: bool = False, lowest: int = 0) -> tuple[Model, Model, LayerStream]:
    """A model, and its copy whose frozen layers are fed; of both the layers from `lowest` on have something trained."""
    torch.manual_seed(0)
    resident = Model(depth, recomputed=recomputed).requires_grad_(False)
    fed = copy.deepcopy(resident)
    stream = LayerStream(fed, list(fed.layers), CPU)
    for model in (resident, fed):
        for layer in list(model.layers)[lowest:]:
            layer.trained = nn.Linear(8, 8)
            torch.manual_seed(1)
            nn.init.normal_(layer.trained.weight)
            nn.init.zeros_(layer.trained.bias)
    return resident, fed, stream


def gradients(model: Model, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize(("recomputed", "lowest"), [(False, 0), (True, 0), (False, 1), (True, 2)])
def test_outputs_and_gradients_are_those_of_layers_in_place(depth: int, recomputed: bool, lowest: int) -> None:
    resident, fed, _ = pair(depth, recomputed=recomputed, lowest=min(lowest, depth - 1))
    for step in range(3):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        found, expected = gradients(fed, x), gradients(resident, x)
        assert len(found) == 2 * (depth - min(lowest, depth - 1))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        with torch.inference_mode():
            assert torch.equal(fed(x), resident(x))


def test_each_layer_is_sent_for_once_a_pass_and_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fed, stream = pair(5)
    sent: list[int] = []
    plain = CopyStream.copy
    hosts = {id(host): number for number, host in enumerate(stream._fed.hosts)}
    monkeypatch.setattr(
        CopyStream, "copy", lambda self, into, host: (sent.append(hosts[id(host)]), plain(self, into, host))[1]
    )
    x = torch.randn(4, 8)
    for _ in range(2):
        gradients(fed, x)
        assert sent == [0, 1, 2, 3, 4, 2, 1, 0], "layers 4 and 3 are there when the backward pass begins"
        sent[:] = [0, 1]  # which are there for the next forward pass


class Writer(nn.Module):
    """A model with embeddings, layers and a head, which a loss reads by its weight."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.between = nn.Sequential(nn.Identity(), Model(depth))

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.between(self.embeddings(ids)), self.head.weight)


@pytest.mark.parametrize("depth", [1, 4])
def test_embeddings_and_head_are_there_in_turn(depth: int) -> None:
    torch.manual_seed(0)
    resident = Writer(depth).requires_grad_(False)
    fed = copy.deepcopy(resident)
    layers = list(fed.between[1].layers)
    stream = LayerStream(fed, layers, CPU, (fed.embeddings, fed.head, fed.between))
    assert fed.embeddings.weight.untyped_storage().data_ptr() == fed.head.weight.untyped_storage().data_ptr()
    for model in (resident, fed):
        model.between[1].layers[0].trained.requires_grad_(True)
    for layer in (resident.between[1].layers[0], layers[0]):
        layer.trained = nn.Linear(8, 8)
        nn.init.ones_(layer.trained.weight)
        nn.init.zeros_(layer.trained.bias)
    ids = torch.tensor([[1, 4, 10]])
    for _ in range(3):
        found = []
        for model in (resident, fed):
            model.zero_grad()
            loss = model(ids).square().sum()
            loss.backward()
            found.append((loss, model.between[1].layers[0].trained.weight.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        with torch.no_grad():
            assert torch.equal(resident(ids), fed(ids))
    for module, other in ((fed.embeddings, resident.embeddings), (fed.head, resident.head)):
        stream.bring(module)
        assert torch.equal(module.weight, other.weight)


def test_two_layers_are_held_whatever_the_depth() -> None:
    _, fed, stream = pair(6)
    matrices = {layer.up.weight.untyped_storage().data_ptr() for layer in fed.layers}
    assert len(matrices) == SLOTS
    assert [len(host) for host in stream._fed.hosts] == [1024 + 1024 + 4 * 8 * 8] * 6
    assert stream.host_bytes == 6 * 4096
    assert all(layer.norm.weight.untyped_storage().data_ptr() not in matrices for layer in fed.layers)


def test_a_layer_is_brought_for_who_looks_at_its_weights() -> None:
    resident, fed, stream = pair(4)
    for mine, other in zip(fed.layers, resident.layers, strict=True):
        stream.bring(mine)
        assert torch.equal(mine.up.weight, other.up.weight)
    stream.bring(fed)  # is none of the layers


def test_what_modules_share_stays_where_it_is() -> None:
    model = Model(3).requires_grad_(False)
    model.layers[2].up = model.layers[0].up
    LayerStream(model, list(model.layers), CPU)
    assert model.layers[2].up.weight is model.layers[0].up.weight
    assert len(model.layers[0].up.weight.untyped_storage()) == 4 * 8 * 24


def test_no_copy_is_made_of_a_weight_that_is_there_only_while_its_module_computes() -> None:
    _, fed, _ = pair(2)
    with patch_decode_linears(fed, torch.bfloat16):
        assert all("forward" not in vars(layer.up) for layer in fed.layers)
        assert all("forward" in vars(layer.trained) for layer in fed.layers)


def test_a_step_that_copies_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = CopyStream(CPU)
    stream._stream = object()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        stream.copy(torch.empty(1), torch.empty(1))
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        stream.wait(object())

"""Weights of which every rank holds a part (torch's FSDP2): the one place that knows of DTensor.

A layer is gathered while it computes, forward and backward, and so are the embeddings, the last norm and the head, as
one. Inside a layer everything finds plain and whole tensors: kernels that read weights by themselves, LoRA's factors,
weights in 4 bits, whose constants every rank has whole. Between steps there are only the parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from loraft.adapters.inject import AdaptedModel, trained_parameters
from loraft.config.distributed_section import DistributedSection
from loraft.distributed.part_loading import gather_in, in_place_of
from loraft.distributed.ranks import Ranks
from loraft.kernels.linear_weights import keep_constants
from loraft.tasks.loss import TaskLoss


@dataclass(frozen=True, eq=False)
class Shards:
    """A model in parts.

    Attributes:
        loss: The module whose forward trains it.
        parts: It and the layers: what is gathered at once.
    """

    loss: nn.Module
    parts: tuple[FSDPModule, ...]

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """What lies outside of the layers is whole while this is entered; layers are gathered as they compute."""
        self.parts[-1].unshard()
        try:
            yield
        finally:
            for part in self.parts:
                part.reshard()

    @contextmanager
    def whole(self, adapted: AdaptedModel, *, keep: bool) -> Iterator[AdaptedModel]:
        """The model with its trained tensors whole where they are to be kept, in main memory; all ranks do it together.

        A model that is trained whole has its frozen tensors so too.
        """
        named = adapted.trainable if adapted.targets is not None else dict(adapted.model.named_parameters())
        found: dict[nn.Parameter, nn.Parameter] = {}
        for parameter in named.values():
            tensor = plain(parameter.detach())
            if keep:
                found[parameter] = nn.Parameter(tensor.cpu(), requires_grad=parameter.requires_grad)
        trainable = {name: found.get(weight, weight) for name, weight in adapted.trainable.items()}
        with in_place_of(adapted.model, found):
            yield replace(adapted, trainable=trainable)

    def restore(self, adapted: AdaptedModel, act: Callable[[AdaptedModel], None]) -> None:
        """Let `act` change the trained tensors of the whole model, and take the parts of them."""
        with self.whole(adapted, keep=True) as changed:
            act(changed)
        for name, parameter in adapted.trainable.items():
            set_values(parameter, changed.trainable[name].data)


def shard(
    loss: TaskLoss, layers: Sequence[nn.Module], settings: DistributedSection, ranks: Ranks, device: str
) -> Shards:
    """Leave each rank its part of the model in `loss`, which is the same on all of them.

    Gradients are summed: each rank has divided by what all of them read.
    """
    # T5's layers give a view, on which nothing is done in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    loss.keeps_casts = False
    mesh = _mesh(settings, ranks, device)
    offload = CPUOffloadPolicy() if settings.cpu_offload and device != "cpu" else OffloadPolicy()
    gather_in(loss, ranks, besides=layers)
    for layer in layers:
        gather_in(layer, ranks)
        keep_constants(layer)
        fully_shard(layer, mesh=mesh, reshard_after_forward=settings.reshard, offload_policy=offload)
    fully_shard(loss, mesh=mesh, reshard_after_forward=False, offload_policy=offload)
    register_fsdp_forward_method(loss, "with_router_loss")
    parts: Any = (*layers, loss)
    parts[-1].set_reduce_scatter_unused_params(True)  # an expert may be asked on one rank alone
    # An evaluation may come first, which calls the layers by themselves.
    parts[-1]._get_fsdp_state()._lazy_init()
    for part in parts:
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
        part.unshard()  # its place is made outside of inference mode, where gradients can go through it
        part.reshard()
    return Shards(loss, parts)


def _mesh(settings: DistributedSection, ranks: Ranks, device: str) -> DeviceMesh:
    """All ranks in a row; or with copies on each machine `[machines, ranks of one]`."""
    if settings.hybrid_shard:
        return init_device_mesh(device, (ranks.machines, ranks.local_world), mesh_dim_names=("copies", "shards"))
    return init_device_mesh(device, (ranks.world,))


def in_parts(adapted: AdaptedModel) -> AdaptedModel:
    """The same with the parameters that a model has once it is in parts."""
    return replace(adapted, trainable=trained_parameters(adapted.model))


def plain(tensor: Tensor) -> Tensor:
    """A tensor as a whole, for which all ranks ask together where they have parts of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class HeldRows(NamedTuple):
    """Which rows of a tensor a rank has, from `start` to the one before `stop`.

    Attributes:
        parted: Others have others.
        of_first_copy: Where several machines have the whole model in parts, they are those of the first.
    """

    start: int
    stop: int
    parted: bool
    of_first_copy: bool


def held_rows(tensor: Tensor) -> HeldRows:
    """The rows of a tensor that this rank has; of one without dimensions the only number is a row."""
    if not isinstance(tensor, DTensor):
        return HeldRows(0, tensor.shape[0] if tensor.dim() else 1, parted=False, of_first_copy=True)
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]  # as torch's distributed checkpoint asks for it
    start, coordinate = chunk.offsets[0], tensor.device_mesh.get_coordinate() or [0]
    return HeldRows(start, start + chunk.sizes[0], parted=True, of_first_copy=not any(coordinate[:-1]))


def with_own_part(like: Tensor, rows: Tensor | None) -> Tensor:
    """A tensor in parts as `like` is, of which this rank has these rows, which become its own; none are zero rows."""
    assert isinstance(like, DTensor), "it has parts"
    local = like.to_local()
    own = torch.empty_like(local) if rows is None else rows.to(device=local.device, copy=True)
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(own, mesh, placements, shape=like.shape, stride=like.stride(), run_check=False)


def placed_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A tensor that every rank has whole, on the device of a parameter, and in parts where that is and is as large.

    One that is in parts stays so.
    """
    if isinstance(value, DTensor):
        return value
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value.to(parameter.device)
    mesh, placements = parameter.device_mesh, parameter.placements
    local = distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None).to_local()
    return with_own_part(parameter, local)


def set_values(parameter: Tensor, value: Tensor) -> None:
    """Give a parameter values that every rank has whole."""
    with torch.no_grad():
        own_part(parameter).copy_(own_part(placed_as(parameter, value)))

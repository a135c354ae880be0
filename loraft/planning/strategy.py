"""What each of several ranks holds of a model: chosen by what fits, its memory, and what cannot be in parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from loraft.config.change_config import with_values
from loraft.config.choices import OptimName, Strategy
from loraft.config.distributed_section import DistributedSection
from loraft.dataset.sampler import BatchSampler
from loraft.distributed.exchange import Exchange
from loraft.distributed.ranks import Ranks
from loraft.errors import ConfigError, Problem
from loraft.figures import counted
from loraft.kernels.transfer import has_own_memory
from loraft.models.modules import is_within
from loraft.models.quantize import quantized_bytes
from loraft.optimization.optimizer import SMALLER, require_optimizer
from loraft.planning.known_run import KnownRun
from loraft.planning.memory import MemoryPlan
from loraft.planning.planned_memory import ROOM, Saving, plan_memory, too_large
from loraft.tasks.batches import BatchLayout

KEY = "distributed.strategy"
PAGED = "training.optim auto is paged_adamw_32bit: with adamw the run might not fit in memory"
GATHERED = 2
"""Layers that are whole at once: the one that computes, and the one that comes next."""


def hindrances(known: KnownRun) -> Iterator[Problem]:
    """What of a run goes only with whole weights, by the key that asks for it, with what to write instead."""
    config, shape, optim = known.config, known.shape, known.config.training.optim
    in_8_bits = shape.quantization is not None and shape.quantization.bits == 8
    adapts, reads_rows = config.method != "full", config.lora.init == "eva"
    table = (
        (config.model.stream_layers, "model.stream_layers", "whole layers are fed from main memory", "write false"),
        (in_8_bits, "quantization.type", "weights in 8 bits have constants for whole rows", "write nf4"),
        (bool(shape.few_bits.experts), "quantization.experts", "experts in 4 bits are packed whole", "write false"),
        (optim != "adamw", "training.optim", f"{optim} takes steps on whole tensors", "write adamw"),
        (adapts and reads_rows, "lora.init", "eva looks into layers while they read rows", "write default"),
        (adapts and config.lora.bias != "none", "lora.bias", "biases of the base are kept beside it", "write none"),
        (known.placement.dtype == torch.float16, "model.dtype", "float16 scales the loss", "write bfloat16"),
    )
    for hinders, key, why, remedy in table:
        if hinders:
            said = f"{why}, and fsdp2 leaves each rank a part of every tensor"
            yield Problem(said, key=key, remedy=f"{remedy}, or distributed.strategy: ddp")


def loads_in_parts(known: KnownRun, ranks: Ranks) -> bool:
    """Whether a rank needs no whole model even while it loads: where no more is looked at than a module at a time.

    What outside of the layers is trained whole is whole then too, as it is while the model computes. Starts that are
    computed from weights change them, tokens that are added change tables, and both need whole ones.
    """
    config, targets, shape = known.config, known.shape.targets, known.shape
    if ranks.world == 1 or config.distributed.strategy != "fsdp2" or shape.stored is not None:
        return False
    if config.model.add_tokens or targets is None:
        return not config.model.add_tokens
    within = any(is_within(name, *shape.family.stacks.values()) for name in targets.saved)
    return config.lora.init in ("default", "gaussian") and not (within or targets.rows or targets.weights)


@dataclass(frozen=True)
class Parts:
    """What a rank holds of a model in parts.

    Attributes:
        weights: The bytes of all weights.
        layers: Those of the layers' matrices, each.
        constants: Of weights in 4 bits, what every rank holds whole.
        ranks: How many parts there are.
    """

    weights: int
    layers: tuple[int, ...]
    constants: int
    ranks: int
    settings: DistributedSection
    offloads: bool

    def exchange(self, trained: int, batches: int) -> Exchange:
        """What ranks exchange in a step of so many batches each, where so many bytes are trained.

        Each batch gathers all weights, and those of the layers once more to go backward where they are let go; what is
        trained beside frozen weights lies in the layers.
        """
        in_layers = sum(self.layers) + (0 if trained >= self.weights else trained)
        gathered = self.outside + (2 if self.settings.reshard else 1) * in_layers
        return Exchange(batches * gathered, batches * trained, copied=self.settings.hybrid_shard)

    @property
    def outside(self) -> int:
        """The bytes outside of the layers that are in parts."""
        return max(0, self.weights - self.constants - sum(self.layers))

    @property
    def gathered(self) -> int:
        """The bytes that are whole while it computes: what is outside of the layers, and layers."""
        largest = sorted(self.layers, reverse=True)
        return self.outside + sum(largest[:GATHERED] if self.settings.reshard else largest)

    def of(self, plan: MemoryPlan) -> MemoryPlan:
        """The memory of a rank, where that of one that holds everything is known.

        A layer's gradients are whole until they are summed: of a model that is trained whole, as large as the layer.
        """
        whole_model = not plan.adapter
        own = -(-(self.weights - self.constants) // self.ranks) + self.constants
        on_host = own + -(-(plan.adapter + plan.gradients + plan.optimizer) // self.ranks)
        gradient = self.gathered if whole_model else 0
        return replace(
            plan,
            weights=self.gathered + (0 if self.offloads else own),
            adapter=0 if self.offloads else -(-plan.adapter // self.ranks),
            gradients=gradient + (0 if self.offloads else -(-plan.gradients // self.ranks)),
            optimizer=0 if self.offloads else -(-plan.optimizer // self.ranks),
            host_weights=on_host if self.offloads else plan.host_weights,
        )


def parts_of(known: KnownRun, plan: MemoryPlan, ranks: Ranks) -> Parts:
    """The parts of the model of a run whose memory in one process is known."""
    settings, shape = known.config.distributed, known.shape
    whole_model = shape.targets is None
    width = 4 if whole_model else known.placement.dtype.itemsize
    in_4_bits = quantized_bytes(shape.quantized_parameters, shape.few_bits.rows, shape.quantization)
    return Parts(
        weights=plan.weights,
        layers=tuple(plain * width + packed // 2 for plain, packed in shape.matrices),
        constants=in_4_bits - shape.quantized_parameters // 2 if in_4_bits else 0,
        ranks=ranks.local_world if settings.hybrid_shard else ranks.world,
        settings=settings,
        offloads=settings.cpu_offload and has_own_memory(known.placement.device),
    )


def spread(
    known: KnownRun, drawn: BatchSampler, layout: BatchLayout, ranks: Ranks, *, pages: bool
) -> tuple[KnownRun, MemoryPlan, Saving, tuple[str, ...]]:
    """The run with what each rank holds of it: its memory, what is computed again, and what there is to say.

    Where it would not fit, the state of the optimizer is paged if that may be, and then weights are in parts.
    """
    plan = partial(plan_memory, batches=drawn, layout=layout)
    whole, notes, asked = known, tuple[str, ...](), known.config.distributed.strategy
    memory, saving = plan(known)
    if pages and (asked != "fsdp2" or ranks.world == 1) and pages_instead(known, memory):
        whole, notes = with_optim(known, SMALLER), (PAGED,)
        memory, saving = plan(whole)
    strategy = choose_strategy(known, ranks, fits=too_large(whole, memory) is None)
    if strategy == "fsdp2" and ranks.world > 1:
        whole, notes = known, ()
        memory, saving = plan(known, held=parts_of(known, plan(known)[0], ranks).of)
    decided = replace(whole, config=with_values(whole.config, {KEY: strategy}))
    return decided, memory, saving, (*notes, *strategy_notes(known, strategy, ranks, memory))


def pages_instead(known: KnownRun, memory: MemoryPlan) -> bool:
    """Whether the state of the optimizer had better be paged: QLoRA on CUDA that is foreseen not to fit otherwise."""
    on_cuda = known.placement.device == "cuda"
    return on_cuda and known.config.method == "qlora" and memory.peak_bytes > ROOM * known.placement.available_bytes


def with_optim(known: KnownRun, optim: OptimName) -> KnownRun:
    """The same with another optimizer, which can take a step.

    Raises:
        ConfigError: It cannot.
    """
    config = with_values(known.config, {"training.optim": optim})
    if not known.placement.stated:
        require_optimizer(config.training, known.placement.device)
    return replace(known, config=config)


def choose_strategy(known: KnownRun, ranks: Ranks, *, fits: bool) -> Strategy:
    """What `distributed.strategy` comes to where a rank that holds everything fits its device, or does not.

    Raises:
        ConfigError: fsdp2 is asked for, and something that does not go with it; or copies on one machine.
    """
    asked, machines = known.config.distributed.strategy, ranks.machines
    if ranks.world > 1 and known.config.distributed.hybrid_shard and 1 in (machines, ranks.local_world):
        said = counted(machines, "machine") + " of " + counted(ranks.local_world, "rank")
        why = f"the model is in parts within a machine and copied on others, and there is {said}"
        raise ConfigError(why, key="distributed.hybrid_shard", remedy="write false")
    if ranks.world == 1 or asked == "ddp" or (asked == "auto" and fits):
        return asked if ranks.world == 1 else "ddp"
    found = list(hindrances(known))
    if found and asked == "fsdp2":
        raise ConfigError.several(found)
    return "ddp" if found else "fsdp2"


def strategy_notes(known: KnownRun, strategy: Strategy, ranks: Ranks, memory: MemoryPlan) -> tuple[str, ...]:
    """What there is to say of what each rank holds, which needs so much memory."""
    notes = list(_without_effect(known, ranks, strategy))
    if known.config.distributed.strategy == "auto" and ranks.world > 1:
        what = "everything and" if strategy == "ddp" else "parts, since everything would not fit, and"
        there = f"{_gb(known.placement.available_bytes)} available"
        notes.insert(0, f"{KEY} auto is {strategy}: a rank holds {what} needs {_gb(memory.peak_bytes)} of the {there}")
    return tuple(notes)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _without_effect(known: KnownRun, ranks: Ranks, strategy: Strategy) -> Iterator[str]:
    """What is said of ranks or parts, and changes nothing here."""
    settings = known.config.distributed
    said = settings.of_shards
    if ranks.world == 1:
        named = [*([KEY] if settings.strategy != "auto" else []), *said]
        if named:
            yield f"nothing changes by {' and '.join(named)}: one process trains alone"
    elif strategy == "ddp" and said:
        yield f"nothing changes by {' and '.join(said)}: fsdp2 alone has that"
    elif strategy == "fsdp2" and settings.cpu_offload and not has_own_memory(known.placement.device):
        yield "distributed.cpu_offload changes nothing on a CPU: the parts are in main memory as it is"

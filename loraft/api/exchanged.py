"""What several ranks hold, exchange and gain by each strategy, told from a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from loraft.api.predicted_time import LAUNCH, USED, rated_gpu, two_figures, work_of_a_step
from loraft.config.distributed_section import DistributedSection
from loraft.dataset.sampler import batch_sampler
from loraft.distributed.exchange import Exchange
from loraft.distributed.ranks import Ranks, gradient_bytes
from loraft.planning.memory import MemoryPlan
from loraft.planning.planned_memory import plan_memory
from loraft.planning.run_plan import RunPlan
from loraft.planning.strategy import hindrances, parts_of

INSIDE = (25e9, 450e9)
"""Bytes a second into a GPU from the others of its machine: by PCIe 4.0 with 16 lanes, and by the NVLink of an H100."""
NETWORK = (12.5e9, 400e9)
"""And into a machine from others: by one network of 100 Gbit/s, and by one of 400 Gbit/s for each of eight GPUs."""
ASSUMED = (
    "how many times as fast ranks are is reckoned, at least with links of 25 GB/s in a machine and 12.5 GB/s between "
    "machines that are waited for, at most with 450 and 400 GB/s that are not; no GPU has confirmed it"
)


def strategies(plan: RunPlan, ranks: Ranks) -> tuple[dict[str, Any], ...]:
    """What each strategy needs and costs of several ranks; one that the plan cannot take is left out."""
    if ranks.world == 1:
        return ()
    alone = memory_alone(plan)
    return tuple({"strategy": name, **_told(plan, alone, each, ranks)} for name, each in _settings(plan, ranks))


def _settings(plan: RunPlan, ranks: Ranks) -> Iterator[tuple[str, DistributedSection]]:
    settings = plan.config.distributed
    yield "ddp", settings.model_copy(update={"strategy": "ddp"})
    if any(hindrances(plan)):
        return
    in_parts = settings.model_copy(update={"strategy": "fsdp2", "hybrid_shard": False})
    yield "fsdp2", in_parts
    if ranks.machines > 1 and ranks.local_world > 1:
        yield "fsdp2 with hybrid_shard", in_parts.model_copy(update={"hybrid_shard": True})


def _told(plan: RunPlan, alone: MemoryPlan, settings: DistributedSection, ranks: Ranks) -> dict[str, Any]:
    """What one strategy comes to, where it is known what a rank takes that holds everything."""
    exchange, memory = of_strategy(plan, alone, settings, ranks)
    told: dict[str, Any] = {
        "peak_bytes": memory.peak_bytes,
        "fits": memory.peak_bytes <= plan.placement.available_bytes,
        "a_rank_gets_bytes": exchange.into_a_rank(ranks),
    }
    if ranks.machines > 1:
        told["a_machine_gets_bytes"] = exchange.into_a_machine(ranks)
    if (gain := times_as_fast(plan, exchange, ranks)) is not None:
        told |= zip(("at_least_times", "at_most_times"), map(two_figures, gain), strict=True)
    return told


def of_strategy(
    plan: RunPlan, alone: MemoryPlan, settings: DistributedSection, ranks: Ranks
) -> tuple[Exchange, MemoryPlan]:
    """What ranks exchange in a step by a strategy, and the memory of each."""
    trained = gradient_bytes(plan.shape.trainable_parameters)
    if settings.strategy == "ddp":
        return Exchange(summed=trained), alone
    parts = parts_of(replace(plan, config=plan.config.model_copy(update={"distributed": settings})), alone, ranks)
    return parts.exchange(trained, -(-plan.batches.accumulation // ranks.world)), parts.of(alone)


def memory_alone(plan: RunPlan) -> MemoryPlan:
    """The memory of a rank that holds everything."""
    drawn = batch_sampler(plan.config, plan.data.train, plan.data.train_sources)
    return plan_memory(plan, drawn, plan.layout)[0]


def times_as_fast(plan: RunPlan, exchange: Exchange, ranks: Ranks) -> tuple[float, float] | None:
    """How many times as fast as one GPU all of them are, at least and at most; None where no time is known.

    At least: slow links, for which computing waits. At most: fast ones, beside which it goes on.
    """
    gpu, _ = rated_gpu(plan)
    if gpu is None:
        return None
    _, work = work_of_a_step(plan)
    slow, fast = (work.seconds(gpu, used, launch) for used, launch in zip(USED, LAUNCH, strict=True))
    waits = [
        max(exchange.into_a_rank(ranks) / inside, exchange.into_a_machine(ranks) / network)
        for inside, network in zip(INSIDE, NETWORK, strict=True)
    ]
    # The faster a GPU computes, the less an exchange of the same size lets it gain.
    return fast / (fast / ranks.world + waits[0]), slow / max(slow / ranks.world, waits[1])

"""A few steps of a run, taken and measured, and what all of them come to at that rate."""

from __future__ import annotations

from typing import Any

from loraft.baselines.compare_methods import compare_methods
from loraft.config.schema import RunConfig
from loraft.events import Observer
from loraft.models.remote_code import is_trusted
from loraft.planning.run_plan import RunPlan


def measured_steps(plan: RunPlan, config: RunConfig, steps: int, observer: Observer) -> dict[str, Any]:
    """What a few steps took, and the time of all at that rate; evaluating and saving come on top."""
    (tried,) = compare_methods(
        config, methods=(config.method,), steps=steps, trust_remote_code=is_trusted(), observer=observer
    ).methods
    cost = tried.measured
    assert cost is not None, "else it is refused"
    tokens = sum(example.tokens for example in plan.data.train) / len(plan.data.train)
    settings = plan.config.training
    rows = plan.steps * settings.per_device_train_batch_size * plan.batches.accumulation
    return {
        "steps": steps,
        "tokens_per_second": cost.tokens_per_second,
        "peak_bytes": cost.memory["peak_bytes"],
        "all_steps_seconds": rows * tokens / cost.tokens_per_second,
    }

"""All that is known of a run before its first step, as plain values for a table or for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraft.adapters.model_card import shown
from loraft.api.exchanged import ASSUMED, strategies
from loraft.api.predicted_time import predicted_time, work_of_a_step
from loraft.api.served_by_vllm import vllm_notes
from loraft.baselines.compare_methods import compare_methods
from loraft.config.schema import RunConfig
from loraft.config.sections import FROM_WEIGHTS
from loraft.distributed.ranks import ALONE, Ranks
from loraft.events import Observer
from loraft.models.remote_code import is_trusted
from loraft.optimization.schedule import learning_rate, warmup_steps
from loraft.planning.run_plan import RunPlan


@dataclass(frozen=True)
class CheckReport:
    """All that is known of a run before its first step.

    Attributes:
        model: The architecture, its size, device and dtype, and what is quantized.
        data: The rows: read, kept, dropped and why, lengths, trained share, samples.
        adapter: What is trained, by module and layer.
        memory: Bytes by part, and the peak.
        training: Batches, rate and optimizer.
        time: How long steps take by the rates that the GPU's maker states; None where they are not known.
        strategies: What each strategy needs and costs of several ranks, in a step; none for one.
        measured: What a few steps took, where it was asked for, and the time of the whole run at that rate.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    adapter: dict[str, Any]
    memory: dict[str, int]
    training: dict[str, Any]
    steps: int
    notes: tuple[str, ...]
    time: dict[str, Any] | None = None
    strategies: tuple[dict[str, Any], ...] = ()
    measured: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        told = {**vars(self), "notes": list(self.notes)}
        return {key: part for key, part in told.items() if part not in (None, ())}


def report(plan: RunPlan, folder: Path, ranks: Ranks = ALONE, *, verbose: bool = False) -> CheckReport:
    """The report of a plan whose run would be written to `folder`; `verbose` names each row that is there twice."""
    time, not_predicted = predicted_time(plan)
    told = strategies(plan, ranks)
    assumed = ASSUMED if any("at_most_times" in each for each in told) else None
    return CheckReport(
        model=_model(plan),
        data=plan.data.report.as_dict(verbose=verbose),
        adapter=_adapter(plan),
        memory={**plan.memory.as_dict(), "available_bytes": plan.placement.available_bytes},
        training=_training(plan, folder),
        steps=plan.steps,
        notes=(*plan.notes, *filter(None, [not_predicted, assumed]), *vllm_notes(plan)),
        time=time,
        strategies=told,
    )


def measured_steps(plan: RunPlan, config: RunConfig, steps: int, observer: Observer) -> dict[str, Any]:
    """What a few steps took, and the time of all at that rate; evaluating and saving come on top."""
    (tried,) = compare_methods(
        config, methods=(config.method,), steps=steps, trust_remote_code=is_trusted(), observer=observer
    ).methods
    cost = tried.measured
    assert cost is not None, "else it is refused"
    tokens, _ = work_of_a_step(plan)
    return {
        "steps": steps,
        "tokens_per_second": cost.tokens_per_second,
        "peak_bytes": cost.memory["peak_bytes"],
        "all_steps_seconds": plan.steps * tokens / cost.tokens_per_second,
    }


def _model(plan: RunPlan) -> dict[str, Any]:
    shape, depths = plan.shape, plan.shape.depths
    layers = {f"{stack}_layers" if len(depths) > 1 else "num_layers": depth for stack, depth in depths.items()}
    facts: dict[str, Any] = {
        "name": shown(plan.config.model.name_or_path),
        "model_type": shape.family.model_type,
        **layers,
        "hidden_size": next(iter(shape.layers.values())).hidden,
        "vocabulary": shape.vocabulary,
        "parameters": shape.total_parameters,
        "device": plan.placement.device_name,
        "dtype": plan.config.model.dtype,
    }
    if shape.stored is not None:
        facts["stored"] = shape.stored.words
    if shape.quantization is not None:
        facts["quantization"] = shape.quantization.words
        facts["quantized_parameters"] = shape.quantized_parameters
        facts["not_quantized"] = "embeddings, norms, head"
    return facts


def _adapter(plan: RunPlan) -> dict[str, Any]:
    trainable, total, targets = plan.shape.trainable_parameters, plan.shape.parameters_in_training, plan.shape.targets
    facts: dict[str, Any] = {
        "method": plan.config.method,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_share": trainable / total,
    }
    if targets is None:
        return facts
    by_stack = {stack: list(layers) for stack, layers in targets.layers_by_stack.items()}
    facts["layers"] = by_stack if len(plan.shape.depths) > 1 else list(targets.layers)
    facts["modules"] = len(targets.modules)
    if targets.by_pattern:
        facts["modules_by_pattern"] = targets.by_pattern
    if targets.saved:
        facts["trained_whole"] = list(targets.saved)
    if targets.weights:
        facts["adapted_parameters"] = [
            {"parameter": weight.name, "experts": weight.experts, "parameters": weight.parameters}
            for weight in targets.weights
        ]
    if targets.biases:
        facts["trained_biases"] = {"count": len(targets.biases), "parameters": sum(targets.biases.values())}
    if plan.config.lora.init in FROM_WEIGHTS:
        facts["saved_parameters"] = trainable + targets.parameters
    facts["targets"] = [
        {"module": name, "count": count.modules, "parameters": count.parameters}
        for name, count in targets.by_name.items()
    ]
    return facts


def _training(plan: RunPlan, folder: Path) -> dict[str, Any]:
    settings = plan.config.training
    return {
        "run_folder": shown(folder.as_posix()),
        "rows_a_step": settings.per_device_train_batch_size * plan.batches.accumulation,
        "layout": "end to end" if plan.layout.packed else "padded",
        "shared_prefix": plan.layout.shares,
        "steps_an_epoch": plan.batches.steps(0) if plan.data.report.train_rows is not None else None,
        "warmup_steps": warmup_steps(settings.warmup_steps, plan.steps),
        "learning_rate": settings.learning_rate,
        "last_learning_rate": learning_rate(settings, plan.steps, plan.steps),
        "lr_scheduler_type": settings.lr_scheduler_type,
        "optim": settings.optim,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "tiled_mlp": settings.tiled_mlp,
        **({"frozen_prefix_bytes": plan.frozen_prefix_bytes} if settings.cache_frozen_prefix else {}),
        "eval_every_steps": plan.eval_every or "epoch",
        "save_every_steps": plan.save_every or "epoch",
    }

"""A planned run, carried out: the model loaded and adapted, the folder kept, the result saved."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from loraft.adapters.inject import AdaptedModel, attach
from loraft.adapters.model_card import TrainingFacts, shown, shown_word
from loraft.adapters.save_adapter import restore, save_adapter, save_full
from loraft.events import Note, Observer
from loraft.figures import perplexity
from loraft.io.resources import disk_errors, memory_errors
from loraft.kernels.packed_attention import ROWS
from loraft.kernels.rms_norm import patch_rms_norm
from loraft.models.load_model import LoadedModel, load_model
from loraft.tasks.loss import TaskLoss
from loraft.training.checkpoint import RunState, Trainer, verified
from loraft.training.loop import fit
from loraft.training.memory import peak_bytes
from loraft.training.optimizer import build_optimizer
from loraft.training.resume import Begun, compare_with_begun, refuse_another_base, resume_from, weights_in
from loraft.training.run_dir import RunFolder
from loraft.training.run_events import Saved
from loraft.training.run_plan import RunPlan
from loraft.training.stop_signals import SaveRequests
from loraft.training.trackers import tracked
from loraft.version import __version__, version_of

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors")
Answerer = Callable[[AdaptedModel], Callable[[str], str]]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run gives.

    Attributes:
        run_folder: The run's folder.
        saved: The folder of the adapter, or of the model for `method: full`.
        steps: Optimizer steps taken.
        loss: The last logged training loss, in nats a trained token.
        eval_loss: The last evaluation's loss.
        perplexity: exp(eval_loss); None for a classifier.
        figures: What else the last evaluation measured: `accuracy` and `macro_f1` of a classifier.
        best_eval_loss: The best evaluation's loss.
        best_step: The step of the best evaluation.
        saved_step: The step whose weights `saved` holds.
        trained_tokens: Trained tokens of the whole run.
        seconds: The time that this process trained, loading included.
        peak_bytes: The most memory held.
    """

    run_folder: Path
    saved: Path
    steps: int
    loss: float | None
    eval_loss: float | None
    perplexity: float | None
    figures: Mapping[str, float]
    best_eval_loss: float | None
    best_step: int | None
    saved_step: int
    trained_tokens: int
    seconds: float
    peak_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON shows it."""
        values: dict[str, Any] = asdict(self)
        figures = values.pop("figures")
        if figures:
            del values["perplexity"]
        return {key: str(value) if isinstance(value, Path) else value for key, value in (values | figures).items()}


def run_plan(
    plan: RunPlan,
    folder: RunFolder,
    *,
    resume: bool,
    resume_anyway: bool,
    overwrite: bool,
    observer: Observer,
    save_requests: SaveRequests,
    answerer: Answerer,
    command: Sequence[str],
) -> TrainResult:
    """Train as planned in a folder that was opened, from its newest checkpoint if `resume` is set.

    A run that it is to replace is removed once the model is loaded: what fails before that leaves it as it is.

    Raises:
        RunFolderError: The run that is to be resumed was begun with other settings, data or weights.
        OutOfMemoryError: The device's memory did not suffice.
    """
    began = time.monotonic()
    for note in plan.notes:
        observer(Note(note))
    begun = compare_with_begun(plan, folder, anyway=resume_anyway) if resume else Begun()
    full_disk = disk_errors(folder.path, remedy="free some space and go on with `resume`")
    with _memory_errors(plan), folder.kept(), full_disk:
        adapted = build_model(plan)
        if resume and not resume_anyway:
            refuse_another_base(folder, adapted.loaded)
        if overwrite:
            folder.empty()
        with tracked(observer, plan.config, folder.path) as told:
            state = RunState()
            run = replace(build_trainer(plan, folder, adapted, told, answerer, state), save_requests=save_requests)
            goes_on = resume and resume_from(run, state, begun)
            if not goes_on:
                folder.cut_back({})
            if begun.taken_on or resume_anyway or not goes_on:
                _describe(plan, folder, adapted.loaded, command)
            fit(run, state)
            saved, saved_step = _finish(run, state, plan)
    return _result(run, state, saved, saved_step, time.monotonic() - began)


def build_model(plan: RunPlan) -> AdaptedModel:
    """The planned model: loaded, with its adapter, its attention, its norms and its checkpointing."""
    method = plan.config.method
    # What is trained whole is loaded in float32, without rounding on the way.
    placement = replace(plan.placement, dtype=torch.float32) if method == "full" else plan.placement
    quantization = plan.config.quantization if method == "qlora" else None
    loaded = load_model(
        plan.model,
        placement,
        quantization=quantization,
        among=plan.task.families,
        labels=plan.data.renderer.labels,
    )
    torch.manual_seed(plan.config.seed)
    if plan.layout.packed:
        loaded.model.set_attn_implementation(ROWS)
    adapted = attach(loaded, plan.config)
    patch_rms_norm(loaded.model)
    if plan.config.training.gradient_checkpointing:
        _checkpoint_layers(loaded.model, plan)
    return adapted


def _checkpoint_layers(model: PreTrainedModel, plan: RunPlan) -> None:
    """Recompute activations in the layers that have a graph; those below the first trained one have none to save."""
    options = {"use_reentrant": False}
    # The method was renamed within the range of versions that loraft takes.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]
    shape = plan.shape
    for stack, path in shape.family.stacks.items():
        layers = list(model.get_submodule(path).children())
        for layer in layers[: len(layers) - shape.graph_layers(stack)]:
            for module in layer.modules():  # T5's attention has the switch too, and lets gradients into its bias by it
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False  # type: ignore[assignment]


def _loss(plan: RunPlan, adapted: AdaptedModel) -> TaskLoss:
    dtype = None if plan.placement.dtype == torch.float32 else plan.placement.dtype
    weights = plan.task.loss_weights(plan.config, plan.data.renderer.labels, plan.data.train)
    on_device = None if weights is None else weights.to(plan.placement.device)
    return plan.task.loss(adapted.loaded.model, plan.shape.family, dtype, on_device)


def build_trainer(
    plan: RunPlan, folder: RunFolder, adapted: AdaptedModel, observer: Observer, answerer: Answerer, state: RunState
) -> Trainer:
    """What the loop needs for a plan and its model; `state` is what it will leave its place in."""
    dtype = plan.placement.dtype
    settings = plan.config.training
    if not plan.task.generates:  # it has nothing to answer with
        settings = settings.model_copy(update={"sample_prompts": ()})
    assert settings.learning_rate != "auto", "the plan resolves it"
    return Trainer(
        adapted=adapted,
        task=plan.task,
        loss=_loss(plan, adapted),
        optimizer=build_optimizer(adapted.trainable, settings),
        scaler=torch.amp.GradScaler(plan.placement.device, enabled=dtype == torch.float16),
        plan=plan.batches,
        layout=plan.layout,
        train=plan.data.train,
        evaluation=plan.data.eval,
        settings=settings,
        steps=plan.steps,
        warmup=plan.warmup,
        peak_rate=settings.learning_rate,
        eval_every=plan.eval_every,
        save_every=plan.save_every,
        folder=folder,
        total_parameters=plan.shape.total_parameters + (plan.shape.trainable_parameters if plan.shape.targets else 0),
        save_weights=lambda into: _save_weights(adapted, into, plan, state),
        answer=answerer(adapted),
        observer=observer,
    )


def _save_weights(adapted: AdaptedModel, into: Path, plan: RunPlan, state: RunState) -> Path:
    facts = TrainingFacts(
        steps=state.step,
        epochs=state.epoch + state.window / plan.batches.steps(state.epoch),
        rows=plan.data.report.train_rows or len(plan.data.train),
        trained_tokens=state.tokens,
        train_loss=state.last_loss,
        eval_loss=state.eval_loss,
        eval_rows=len(plan.data.eval),
        figures=state.eval_figures,
    )
    save = save_full if adapted.method == "full" else save_adapter
    place = into / ("model" if adapted.method == "full" else "adapter")
    save(adapted, place, config=plan.config, renderer=plan.data.renderer, facts=facts)
    return place


def _describe(plan: RunPlan, folder: RunFolder, loaded: LoadedModel, command: Sequence[str]) -> None:
    """Write what a run is, by which it will be known again: when it begins, and when a change is taken on."""
    train, held_out = plan.data.contents
    named = plan.config.training.model_copy(update={"output_dir": folder.path.as_posix()})
    manifest = {
        "versions": {"loraft": __version__, "python": platform.python_version()}
        | {name: version_of(name) for name in LIBRARIES},
        "hardware": {"device": plan.placement.device_name, "memory_bytes": plan.placement.total_bytes},
        "base": {
            "name": shown(loaded.name),
            "revision": plan.config.model.revision,
            "fingerprint": loaded.fingerprint,
        },
        "data": {
            "fingerprint": plan.data.fingerprint,
            "train": train,
            "eval": held_out,
            "held_out": plan.data.held_out,
        },
        "command": [shown_word(word) for word in command],
        "platform": sys.platform,
    }
    folder.describe(plan.config.model_copy(update={"training": named}), manifest)


def _finish(run: Trainer, state: RunState, plan: RunPlan) -> tuple[Path, int]:
    """Save the result: the last weights, or with early stopping the best ones."""
    run.folder.require()
    step = state.step
    best = run.folder.checkpoints / f"step-{state.best_step or 0:06d}"
    is_better = state.best_step not in (None, step)
    wanted = is_better and run.settings.early_stopping_patience is not None
    if wanted and verified(best):
        restore(run.adapted, weights_in(run, best))
        step = state.best_step or step
        state.eval_loss, state.eval_figures = state.best_loss, state.best_figures
        run.observer(Note(f"the weights of step {step} are saved: the best evaluation"))
    elif wanted:
        run.observer(Note(f"the weights of step {step} are saved: the checkpoint of the best evaluation is damaged"))
    elif is_better and best.is_dir():
        run.observer(Note(f"the weights of step {step} are saved; those of the best evaluation are {best}"))
    saved = _save_weights(run.adapted, run.folder.path, plan, state)
    run.observer(Saved(step, saved))
    return saved, step


def _result(run: Trainer, state: RunState, saved: Path, saved_step: int, seconds: float) -> TrainResult:
    return TrainResult(
        run_folder=run.folder.path,
        saved=saved,
        steps=state.step,
        loss=state.last_loss,
        eval_loss=state.eval_loss,
        perplexity=None if state.eval_loss is None or state.eval_figures else perplexity(state.eval_loss),
        figures=dict(state.eval_figures),
        best_eval_loss=state.best_loss,
        best_step=state.best_step,
        saved_step=saved_step,
        trained_tokens=state.tokens,
        seconds=seconds,
        peak_bytes=peak_bytes(run.device),
    )


def _memory_errors(plan: RunPlan) -> AbstractContextManager[None]:
    predicted = plan.memory.peak_bytes / 1e9
    return memory_errors(
        f"{plan.placement.device_name} ran out of memory; about {predicted:.1f} GB were predicted",
        key="training.per_device_train_batch_size",
        remedy="halve it and double training.gradient_accumulation_steps, or set training.gradient_checkpointing: "
        "true; then go on with `resume_anyway`",
    )

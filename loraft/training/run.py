"""A planned run, carried out: the model loaded and adapted, the folder kept, the result saved.

This module knows the order of a run's life, from a plan to an adapter in a folder, whether it begins or goes on.
It refuses to know what a step is (`loop`) and what was decided before (`plan`).
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import loraft
from loraft.adapters.attach import AdaptedModel, attach
from loraft.adapters.card import TrainingFacts, shown
from loraft.adapters.store import restore, save_adapter, save_full
from loraft.config.files import load_config
from loraft.config.schema import idle_keys
from loraft.data.labelled import LabelRenderer
from loraft.errors import AdapterError, ConfigError, Problem, RunFolderError
from loraft.models.attention import ROWS
from loraft.models.disk import disk_errors
from loraft.models.exhaustion import memory_errors
from loraft.models.families import TRAINED_FOR
from loraft.models.loading import LoadedModel, load_model
from loraft.models.norms import give_own_backward
from loraft.training.checkpoint import checkpoints, clear_up, load_checkpoint, newest_checkpoint, restore_rng, verified
from loraft.training.class_weights import class_weights
from loraft.training.events import Note, Observer, Saved
from loraft.training.loop import Fit, RunState, all_trained, fit
from loraft.training.loss import LabelLoss, Loss, TargetLoss
from loraft.training.memory import peak_bytes
from loraft.training.optim import build_optimizer, restore_optimizer
from loraft.training.plan import RunPlan
from loraft.training.run_folder import RunFolder, differences
from loraft.training.tracking import tracked

__all__ = ["TrainResult", "fit_of", "prepared_model", "run_plan"]

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
    if resume and not resume_anyway:
        _refuse_another_run(plan, folder)
    with _memory_errors(plan), disk_errors(folder.path, remedy="free some space and go on with --resume"):
        adapted = prepared_model(plan)
        if resume and not resume_anyway:
            _refuse_another_base(folder, adapted.loaded)
        if overwrite:
            folder.empty()
        with tracked(observer, plan.config, folder.path) as told:
            state = RunState()
            run = fit_of(plan, folder, adapted, told, answerer, state)
            if not (resume and _resumed(run, state)):
                folder.cut_back({})
                _describe(plan, folder, adapted.loaded, command)
            elif resume_anyway:
                _describe(plan, folder, adapted.loaded, command)
            fit(run, state)
            saved, saved_step = _finish(run, state, plan)
    return _result(run, state, saved, saved_step, time.monotonic() - began)


def prepared_model(plan: RunPlan) -> AdaptedModel:
    """The planned model: loaded, with its adapter, its attention, its norms and its checkpointing."""
    method = plan.config.method
    # What is trained whole is loaded in float32, without rounding on the way.
    placement = replace(plan.placement, dtype=torch.float32) if method == "full" else plan.placement
    quantization = plan.config.quantization if method == "qlora" else None
    loaded = load_model(
        plan.config.model,
        placement,
        quantization=quantization,
        among=TRAINED_FOR[plan.config.task],
        labels=_labels(plan),
    )
    torch.manual_seed(plan.config.seed)
    if plan.layout.packed:
        loaded.model.set_attn_implementation(ROWS)
    adapted = attach(loaded, plan.config)
    give_own_backward(loaded.model)
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


def _labels(plan: RunPlan) -> tuple[str, ...]:
    """The classes of a classifier; none for other tasks."""
    renderer = plan.data.renderer
    return renderer.labels if isinstance(renderer, LabelRenderer) else ()


def _loss(plan: RunPlan, adapted: AdaptedModel) -> Loss:
    dtype = None if plan.placement.dtype == torch.float32 else plan.placement.dtype
    model, family = adapted.loaded.model, plan.shape.family
    if plan.config.task != "seq_cls":
        return TargetLoss(model, family, dtype)
    weights = class_weights(plan.config, _labels(plan), plan.data.train)
    return LabelLoss(model, family, dtype, None if weights is None else weights.to(plan.placement.device))


def fit_of(
    plan: RunPlan, folder: RunFolder, adapted: AdaptedModel, observer: Observer, answerer: Answerer, state: RunState
) -> Fit:
    """What the loop needs for a plan and its model; `state` is what it will leave its place in."""
    dtype = plan.placement.dtype
    settings = plan.config.training
    if "training.sample_prompts" in idle_keys(plan.config):  # a classifier has nothing to answer with
        settings = settings.model_copy(update={"sample_prompts": ()})
    assert settings.learning_rate != "auto", "the plan resolves it"
    return Fit(
        adapted=adapted,
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
    named = plan.config.training.model_copy(update={"output_dir": folder.path.as_posix()})
    manifest = {
        "versions": {"loraft": loraft.__version__, "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "hardware": {"device": plan.placement.device_name, "memory_bytes": plan.placement.total_bytes},
        "base": {
            "name": shown(loaded.name),
            "revision": plan.config.model.revision,
            "fingerprint": loaded.fingerprint,
        },
        "data": {"fingerprint": plan.data.fingerprint},
        "command": [shown(word) for word in command],
        "platform": sys.platform,
    }
    folder.describe(plan.config.model_copy(update={"training": named}), manifest)


def _refuse_another_run(plan: RunPlan, folder: RunFolder) -> None:
    """Compare config and data with those that the run in the folder was begun with, where it has come to a checkpoint.

    Before the first checkpoint there may be no manifest yet, and nothing was trained on its rows.
    """
    found, begun = [], bool(checkpoints(folder.checkpoints))
    if folder.config.exists():
        try:
            before = load_config(folder.config).model_dump(mode="json")
            found = differences(before, plan.config.model_dump(mode="json"))
        except ConfigError:
            found = ["its config.yaml was damaged"]
    elif begun:
        found = ["its config.yaml was lost"]
    recorded = _recorded(folder, "data")
    if recorded is None and begun:
        found.append("its manifest.json was lost or damaged, which tells rows and base")
    elif recorded not in (None, plan.data.fingerprint):
        found.append("the rows are not the same, or do not become the same tokens")
    _refuse(found, folder)


def _refuse_another_base(folder: RunFolder, loaded: LoadedModel) -> None:
    if _recorded(folder, "base") not in (None, loaded.fingerprint):
        _refuse(["the base's weights are not the same"], folder)


def _refuse(found: Sequence[str], folder: RunFolder) -> None:
    if found:
        remedy = "undo the change, take it on with --resume-anyway, or begin anew with another training.output_dir"
        problems = [Problem(f"since the run was begun, {text}", where=str(folder.path)) for text in found]
        raise RunFolderError.several([*problems[:-1], replace(problems[-1], remedy=remedy)])


def _recorded(folder: RunFolder, part: str) -> str | None:
    """The fingerprint of `part` in the run's manifest; None where there is none to compare with."""
    try:
        fingerprint: str = json.loads(folder.manifest.read_text(encoding="utf-8"))[part]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return fingerprint


def _resumed(run: Fit, state: RunState) -> bool:
    """Put everything back as the newest good checkpoint has it; False when there is none."""
    clear_up(run.folder.checkpoints)
    newest, damaged = newest_checkpoint(run.folder.checkpoints)
    for text in damaged:
        run.observer(Note(text))
    if newest is None:
        run.observer(Note("there is no checkpoint to go on from: the run begins at step 0"))
        return False
    checkpoint = load_checkpoint(newest)
    _restore_weights(run, newest)
    if checkpoint.state.get("optim", run.settings.optim) == run.settings.optim:
        restore_optimizer(run.optimizer, checkpoint.optimizer, checkpoint.optimizer_numbers)
    else:
        run.observer(Note(f"training.optim was {checkpoint.state['optim']}: {run.settings.optim} begins anew"))
    run.scaler.load_state_dict(dict(checkpoint.state["scaler"]))
    for field in fields(RunState):
        setattr(state, field.name, checkpoint.state.get(field.name, getattr(state, field.name)))
    patience = run.settings.early_stopping_patience
    state.finished = all_trained(run, state) or (patience is not None and state.worse >= patience)
    run.folder.cut_back(checkpoint.state["files"])
    restore_rng(checkpoint.rng)
    run.observer(Note(f"going on from {newest.name}"))
    return True


def _restore_weights(run: Fit, folder: Path) -> None:
    """Put the weights of a checkpoint back.

    Raises:
        RunFolderError: What is trained now has another form.
    """
    place = _weights_in(run, folder)
    try:
        if not place.is_dir():
            raise AdapterError("it was trained by another method")
        restore(run.adapted, place)
    except AdapterError as error:
        first, *others = error.problems
        more = f", and {len(others)} more of the kind" if others else ""
        raise RunFolderError(
            f"{folder.name} has not what is trained now: {first.message}{more}",
            where=str(run.folder.path),
            remedy="undo the change, or begin anew with another training.output_dir",
        ) from error


def _weights_in(run: Fit, folder: Path) -> Path:
    """Where the weights of a checkpoint or a run lie."""
    return folder / ("model" if run.adapted.method == "full" else "adapter")


def _finish(run: Fit, state: RunState, plan: RunPlan) -> tuple[Path, int]:
    """Save the result: the last weights, or with early stopping the best ones."""
    step = state.step
    best = run.folder.checkpoints / f"step-{state.best_step or 0:06d}"
    wanted = run.settings.early_stopping_patience is not None and state.best_step not in (None, step)
    if wanted and verified(best):
        restore(run.adapted, _weights_in(run, best))
        step = state.best_step or step
        state.eval_loss, state.eval_figures = state.best_loss, state.best_figures
        run.observer(Note(f"the weights of step {step} are saved: the best evaluation"))
    elif wanted:
        run.observer(Note(f"the weights of step {step} are saved: the checkpoint of the best evaluation is damaged"))
    saved = _save_weights(run.adapted, run.folder.path, plan, state)
    run.observer(Saved(step, saved))
    return saved, step


def _result(run: Fit, state: RunState, saved: Path, saved_step: int, seconds: float) -> TrainResult:
    return TrainResult(
        run_folder=run.folder.path,
        saved=saved,
        steps=state.step,
        loss=state.last_loss,
        eval_loss=state.eval_loss,
        perplexity=None if state.eval_loss is None or state.eval_figures else math.exp(min(state.eval_loss, 700.0)),
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
        "true; then go on with --resume-anyway",
    )

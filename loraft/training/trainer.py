"""A planned run, carried out: the model loaded and adapted, the folder kept, the result saved."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loraft.adapters.inject import AdaptedModel
from loraft.adapters.model_card import shown, shown_word
from loraft.config.change_config import with_values
from loraft.dataset.sampler import chunks
from loraft.distributed.ranks import Ranks
from loraft.events import Note, Observer, tell
from loraft.figures import counted, perplexity
from loraft.io.checksums import sha256_of_facts
from loraft.io.held_memory import peak_bytes, reset_peak
from loraft.io.resources import disk_errors
from loraft.models.hf_config import config_fingerprint
from loraft.models.remote_code import is_trusted
from loraft.planning.run_plan import RunPlan
from loraft.tasks.frozen_prefix import FrozenPrefix
from loraft.tokenization.examples import Example, with_reference
from loraft.training.built_model import build_model
from loraft.training.checkpoint import RunState, checkpoint_fault, load_checkpoint
from loraft.training.longest_batch import try_longest_batch
from loraft.training.loop import fit, told_if_stopped
from loraft.training.out_of_memory import memory_explained
from loraft.training.resume import compare_with_begun, refuse_another_base, require_same_model, resume_from
from loraft.training.run_dir import GO_ON, RunFolder
from loraft.training.run_events import Saved
from loraft.training.save_run import restore_weights, save_result, weights_in
from loraft.training.start_batches import begin_from_rows
from loraft.training.tracking import tracked
from loraft.training.train_step import Trainer
from loraft.version import versions

Answerer = Callable[[AdaptedModel], Callable[[str], str]]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run gives.

    Attributes:
        saved: The folder of the adapter, or of the model for `method: full`.
        loss: The last logged training loss, in nats a trained token.
        eval_loss: The last evaluation's loss.
        perplexity: exp(eval_loss); None for a classifier.
        figures: What else the last evaluation measured: `accuracy` and `macro_f1` of a classifier.
        saved_step: The step whose weights `saved` holds.
        trained_tokens: Trained tokens of the whole run.
        skipped_steps: Steps whose update was left out: their loss or gradient was not finite.
        seconds: The time that this process trained, loading included.
        peak_bytes: The most memory held since the model was loaded.
        report: The page that tells of the run; None where none was written.
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
    skipped_steps: int
    seconds: float
    peak_bytes: int
    report: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON shows it."""
        values: dict[str, Any] = asdict(self)
        figures = values.pop("figures")
        if figures:
            del values["perplexity"]
        if not self.skipped_steps:
            del values["skipped_steps"]
        return {key: str(value) if isinstance(value, Path) else value for key, value in (values | figures).items()}


def run_plan(
    plan: RunPlan,
    folder: RunFolder,
    ranks: Ranks,
    *,
    resume: bool,
    resume_anyway: bool,
    overwrite: bool,
    observer: Observer,
    save_requests: list[int],
    answerer: Answerer,
    command: Sequence[str],
) -> TrainResult:
    """Train as planned in a folder that was opened, from its newest checkpoint if `resume` is set.

    A run that it is to replace is removed once the model is loaded and the trackers are open: what fails before that
    leaves it as it is.

    Raises:
        RunFolderError: The run that is to be resumed was begun with other settings, data or weights.
        OutOfMemoryError: The device's memory did not suffice.
    """
    began = time.monotonic()
    tell(observer, *plan.notes)
    taken_on, steps_before = ranks.on_main(lambda: compare_with_begun(plan, folder, resume, anyway=resume_anyway))
    full_disk = disk_errors(folder.path, remedy=GO_ON)
    with memory_explained(plan, ranks), folder.kept(), full_disk:
        adapted = _built(plan, ranks, observer)
        if resume and not resume_anyway:
            ranks.on_main(lambda: refuse_another_base(folder, adapted.loaded))
        state, run = RunState(), Trainer(plan, folder, adapted, answerer(adapted), observer, save_requests, ranks)
        try_longest_batch(run, goes_on=resume)
        reset_peak(plan.placement.device)
        if not resume:  # it may be refused, and then nothing is removed
            begin_from_rows(plan, adapted, run.loss)
        opened = tracked(observer, plan.config, folder, anew=overwrite) if ranks.main else nullcontext(observer)
        with opened as run.observer:
            if overwrite:
                ranks.on_main(folder.empty)
            goes_on = resume and resume_from(run, state, taken_on, steps_before)
            if not goes_on:
                _begin_anew(run, begun=not resume)
            if taken_on or resume_anyway or not goes_on:
                _describe(run, command)
            keep_frozen_prefix(run)
            remember_reference(run)
            fit(run, state)
            with told_if_stopped(run, state):
                saved, saved_step = _finish(run, state)
    return _result(run, state, saved, saved_step, time.monotonic() - began)


def _begin_anew(run: Trainer, *, begun: bool) -> None:
    """Begin at the first step: with nothing of a run before, and on all ranks with the main one's numbers."""
    run.folder.cut_back({})
    if not begun:
        begin_from_rows(run.plan, run.adapted, run.loss)
    if run.adapted.targets is not None and run.shards is None:
        run.ranks.take_from_main(run.adapted.trainable.values())


def _built(plan: RunPlan, ranks: Ranks, observer: Observer) -> AdaptedModel:
    """The planned model, the same on all ranks; its weights are fetched once a machine."""
    ranks.first_on_each_machine(lambda: plan.model.folder)
    adapted = ranks.together(lambda: build_model(plan, ranks), patiently=True)
    ranks.together(lambda: require_same_model(adapted, ranks))
    tell(observer, *adapted.notes)
    return adapted


def keep_frozen_prefix(run: Trainer) -> FrozenPrefix | None:
    """Have the output of frozen layers kept in the run's folder where the config asks for it; else remove it there."""
    plan, loaded, place = run.plan, run.adapted.loaded, run.folder.frozen_prefix
    if not run.settings.cache_frozen_prefix:
        shutil.rmtree(place, ignore_errors=True)
        return None
    frozen = plan.shape.frozen_layers
    made_by = {
        "versions": versions(),
        "base": loaded.fingerprint,
        "model": plan.config.model.model_dump(mode="json"),
        "quantization": plan.config.quantization.model_dump(mode="json"),
        "frozen": frozen,
        "layout": asdict(plan.layout),
        "machine": [platform.machine(), plan.placement.device_name, torch.get_num_threads()],
    }
    layers = list(loaded.model.get_submodule(plan.shape.family.layers_path).children())
    kept = FrozenPrefix(layers[:frozen], place, sha256_of_facts(made_by))
    kept.attach(run.loss)
    return kept


def remember_reference(run: Trainer) -> None:
    """Have known of each row that is read more than once what the model before training gives it, computed once.

    The rows are read as they lie, so that a run that is gone on with finds the same numbers.
    """
    plan, size = run.plan, run.settings.per_device_eval_batch_size
    if not plan.task.has_reference(plan.config):
        return
    evaluations = 2 if plan.eval_every is None else plan.steps / plan.eval_every
    again = [(plan.data.eval, evaluations > 1), (plan.data.train, plan.rereads_rows)]
    for rows in (rows for rows, is_so in again if rows and is_so):
        run.observer(Note(f"what the model before training gives {counted(len(rows), 'row')} is computed once"))
        share = run.ranks.share_whole(chunks(rows, size))
        with torch.inference_mode(), run.gathered():
            found = [run.loss.before_training(run.batch(batch)).cpu() for batch in share.batches]
        mine = [row for batch, known in zip(share.batches, found, strict=True) for row in with_reference(batch, known)]
        known = {_content(row): row.reference for part in run.ranks.gathered(mine) for row in part}
        rows[:] = [replace(row, reference=known[_content(row)]) for row in rows]


def _content(row: Example) -> tuple[int, ...]:
    """What the model before training reads of a row: rows that are alike have the same likelihood."""
    return (row.second, len(row.input_ids), *row.input_ids, *row.labels)


def _describe(run: Trainer, command: Sequence[str]) -> None:
    """Write what a run is, by which it will be known again: when it begins, and when a change is taken on."""
    plan, loaded = run.plan, run.adapted.loaded
    train, held_out = plan.data.contents
    manifest = {
        "versions": {**versions(), "python": platform.python_version()},
        "hardware": {"device": plan.placement.device_name, "memory_bytes": plan.placement.total_bytes},
        "base": {
            "name": shown(loaded.name), "revision": plan.config.model.revision,
            "fingerprint": loaded.fingerprint, "config": config_fingerprint(plan.model.small_files),
        },
        "data": {
            "fingerprint": plan.data.fingerprint, "train": train, "eval": held_out, "held_out": plan.data.held_out,
        },
        "ranks": run.ranks.world,
        "batches_a_step": plan.batches.accumulation,
        "planned": {"steps": plan.steps, "peak_bytes": plan.memory.peak_bytes},
        **({"trust_remote_code": True} if is_trusted() else {}),
        "command": [shown_word(word) for word in command],
        "platform": sys.platform,
    }  # fmt: skip
    run.folder.describe(with_values(plan.config, {"training.output_dir": run.folder.path.as_posix()}), manifest)


def _finish(run: Trainer, state: RunState) -> tuple[Path, int]:
    """Save the result: the last weights, or with early stopping the best ones. Where it lies, and of which step."""
    run.ranks.on_main(run.folder.require)
    shutil.rmtree(run.folder.frozen_prefix, ignore_errors=True)
    step, of_weights = state.step, state
    best = run.folder.checkpoints / f"step-{state.best_step or 0:06d}"
    is_better = state.best_step not in (None, step)
    wanted = is_better and run.settings.early_stopping_patience is not None
    if wanted and run.ranks.on_main(lambda: checkpoint_fault(best), patiently=True) is None:
        restore_weights(run, weights_in(run, best))
        step = state.best_step or step
        state.eval_loss, state.eval_figures = state.best_loss, state.best_figures
        then = RunState.stored(load_checkpoint(best).state)
        of_weights = replace(then, eval_loss=state.best_loss, eval_figures=state.best_figures)
        run.observer(Note(f"the weights of step {step} are saved: the best evaluation"))
    elif wanted:
        run.observer(Note(f"the weights of step {step} are saved: the checkpoint of the best evaluation is damaged"))
    elif is_better and best.is_dir():
        run.observer(Note(f"the weights of step {step} are saved; those of the best evaluation are {best}"))
    saved = save_result(run, of_weights)
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
        skipped_steps=state.skipped,
        seconds=seconds,
        peak_bytes=peak_bytes(run.plan.placement.device),
    )

"""Going on with a run: whether it is the same one, what may change, and its newest checkpoint put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from loraft.adapters.inject import AdaptedModel
from loraft.config.change_config import with_values
from loraft.config.config_file import inline, load_config
from loraft.config.schema import RunConfig, TrainingSection
from loraft.config.schema_info import idle_keys
from loraft.distributed.ranks import Ranks
from loraft.errors import AdapterError, ConfigError, DataError, ModelError, Problem, RunFolderError
from loraft.events import Note, tell
from loraft.io.checkpoint_folders import checkpoints
from loraft.io.sealed import is_text_as_sealed, read_sealed
from loraft.io.secrets import redacted_all
from loraft.models.hf_config import config_fingerprint
from loraft.models.load_model import LoadedModel
from loraft.models.remote_code import is_trusted
from loraft.optimization.optimizer import restore_optimizer
from loraft.optimization.schedule import learning_rate
from loraft.planning.run_plan import RunPlan, steps_of
from loraft.training.checkpoint import (
    MANIFEST,
    RunState,
    load_checkpoint,
    newest_checkpoint,
    remove_partial,
    restore_rng,
)
from loraft.training.loop import all_trained, stops_early
from loraft.training.run_dir import RunFolder
from loraft.training.save_run import restore_weights, rotate_checkpoints, weights_in
from loraft.training.train_step import Trainer

SILENT = "training.output_dir"
"""The folder that is gone on with is the one that was named, however it is written."""
HARMLESS = frozenset(
    {
        "training.save_steps", "training.save_total_limit", "training.logging_steps", "training.report_to",
        "training.project", "training.run_name", "training.sample_prompts", "training.per_device_eval_batch_size",
        "training.gradient_checkpointing", "training.cache_frozen_prefix", "training.early_stopping_patience",
        "training.on_nonfinite", "training.try_longest_batch", "training.push_to_hub",
        "model.stream_layers", "data.num_proc", "generation.max_new_tokens", "generation.temperature",
    }
)  # fmt: skip
"""Keys that change no step of the training."""
BEFORE: Mapping[str, object] = {
    "training.kernels": "plain", "training.tiled_mlp": False, "data.shared_prefix": "off",
}  # fmt: skip
"""What versions did that did not have these keys, whose `auto` computes the same but for rounding and what is drawn."""
LENGTH = frozenset({"training.max_steps", "training.num_train_epochs"})
ALTERED = "its config.yaml was edited or damaged"
BY_AN_EARLIER_VERSION = (
    " (an earlier version of loraft began it, which joined the end of a prompt to its answer, read control tokens in "
    "the text of rows as such, and drew held-out rows otherwise)"
)
"""Why rows that nobody changed are others now."""


def as_begun(config: RunConfig, folder: RunFolder) -> RunConfig:
    """A config with what its `auto` stood for when the run in the folder was begun.

    What is foreseen to fit depends on what else the device holds, and a run goes on with what it has.
    """
    asked = [key for key in ("training.optim", *BEFORE) if attrgetter(key)(config) == "auto"]
    if not asked or not folder.config.exists():
        return config
    try:
        begun = _begun(folder)
    except ConfigError:  # which is told where the two are compared
        return config
    return with_values(config, {key: attrgetter(key)(begun) for key in asked})


def begun_batches(folder: RunFolder) -> int | None:
    """How many batches a step of the run reads, however many ranks read them; None where that is not known."""
    told = read_sealed(folder.manifest).get("batches_a_step")
    return told if isinstance(told, int) and told > 0 else None


def require_same_data(plan: RunPlan, ranks: Ranks) -> None:
    """Refuse ranks that read other rows, or take the model by another config, than the first one.

    Raises:
        DataError: This is one.
    """
    told = ranks.gathered((plan.data.fingerprint, plan.config, plan.steps))
    if told[ranks.rank] != told[0]:
        message = f"the rows, model or device of rank {ranks.rank} are not those of rank 0"
        raise DataError(message, remedy="give every machine the same files and a GPU of the same kind")


def require_same_model(adapted: AdaptedModel, ranks: Ranks) -> None:
    """Refuse ranks whose base is another, or whose GPU takes other kernels, as the notes tell, than the first one's.

    Raises:
        ModelError: This is one.
    """
    told = ranks.gathered((adapted.loaded.fingerprint, adapted.notes))
    if told[ranks.rank] != told[0]:
        message = f"the base's weights, or the kernels that were tried, of rank {ranks.rank} are not those of rank 0"
        remedy = "give every machine the same model files, and GPUs of the same kind, or write training.kernels: plain"
        raise ModelError(message, remedy=remedy)


def _begun(folder: RunFolder) -> RunConfig:
    """The config as it was decided when the run was begun, by an earlier version perhaps."""
    begun = load_config(folder.config)
    idle = idle_keys(begun)  # which are left out of what is written
    unknown = {key: did for key, did in BEFORE.items() if key not in idle and not _is_written(begun, key)}
    return with_values(begun, unknown)


def _is_written(config: RunConfig, key: str) -> bool:
    section, _, name = key.partition(".")
    return name in getattr(config, section).model_fields_set


def compare_with_begun(
    plan: RunPlan, folder: RunFolder, resume: bool, *, anyway: bool
) -> tuple[tuple[str, ...], int | None]:
    """Compare config and data with those that the run in the folder was begun with, to `resume` it from a checkpoint.

    What changes no step that was taken is taken on, a longer run among it; with `anyway` all is. Before the first
    checkpoint there may be no manifest yet, and nothing was trained on its rows.

    Returns:
        What is taken on, a clause each, and all steps as the run was begun; None where they are not known any more.

    Raises:
        RunFolderError: They differ in more than that, or can no longer be compared.
    """
    if not resume:
        return (), None
    _require_trust(folder)
    refused: list[str] = []
    taken_on: list[str] = []
    steps, has_checkpoints = None, bool(checkpoints(folder.checkpoints))
    if folder.config.exists():
        if not is_text_as_sealed(folder.config):
            refused = [ALTERED]
        try:
            before = _begun(folder)
        except ConfigError:
            refused = [ALTERED]
        else:
            steps = steps_of(before, plan.batches)
            now = redacted_all(plan.config.model_dump(mode="json"))  # as it was written
            for key, change in _changes(before.model_dump(mode="json"), now):
                harmless = _is_harmless(key, before, plan.config, longer=plan.steps >= steps)
                (taken_on if harmless else refused).append(change)
    elif has_checkpoints:
        refused = ["its config.yaml was lost"]
    recorded = _recorded(folder, "data")
    if recorded is None and has_checkpoints:
        refused.append("its manifest.json was lost or damaged, which tells rows and base")
    elif recorded is not None and recorded["fingerprint"] != plan.data.fingerprint:
        why = "" if "held_out" in recorded else BY_AN_EARLIER_VERSION
        refused.append(f"the rows are not the same, or do not become the same tokens{why}")
    base = _recorded(folder, "base") or {}
    if base.get("config") not in (None, config_fingerprint(plan.model.small_files)):
        refused.append("the config.json of the base is not the same")
    if not anyway:
        _refuse(refused, folder)
    return (*refused, *taken_on), steps


def _require_trust(folder: RunFolder) -> None:
    """The code of a model that a run was begun with runs on only where that is said anew.

    Raises:
        RunFolderError: It is not said.
    """
    began_with = read_sealed(folder.manifest).get("trust_remote_code")
    if began_with is True and not is_trusted():
        message = "the run was begun with the code that its model brings, and that code needs to be trusted again"
        raise RunFolderError(message, where=folder.path, remedy="Say so: `trust_remote_code=True`.")


def refuse_another_base(folder: RunFolder, loaded: LoadedModel) -> None:
    """Compare the base's weights with those that the run was begun with.

    Raises:
        RunFolderError: They are others.
    """
    recorded = _recorded(folder, "base")
    if recorded is not None and recorded["fingerprint"] != loaded.fingerprint:
        _refuse(["the base's weights are not the same"], folder)


def _refuse(found: Sequence[str], folder: RunFolder) -> None:
    if found:
        remedy = "undo the change, take it on with `resume_anyway`, or begin anew with another training.output_dir"
        problems = [Problem(f"since the run was begun, {text}", where=str(folder.path)) for text in found]
        raise RunFolderError.several([*problems[:-1], replace(problems[-1], remedy=remedy)])


def _recorded(folder: RunFolder, part: str) -> Mapping[str, Any] | None:
    """What the run's manifest tells of `part`; None where it has no fingerprint to compare with."""
    told = read_sealed(folder.manifest).get(part)
    return told if isinstance(told, dict) and told.get("fingerprint") is not None else None


def _require_no_result(run: Trainer) -> None:
    """Refuse to begin anew over what a run ended with, whose checkpoints were taken away."""
    if (result := run.folder.result) is not None:
        message = "the run has ended, and there is no checkpoint to go on from: it would begin at step 0"
        remedy = "replace what it ended with by `overwrite`, or train to another folder"
        raise RunFolderError(message, where=result, remedy=remedy)


def resume_from(run: Trainer, state: RunState, taken_on: Sequence[str], steps_before: int | None) -> bool:
    """Put everything back as the newest good checkpoint has it, and say so; False when none was written yet.

    What is taken on and the steps before are those of `compare_with_begun`.

    Raises:
        RunFolderError: There are checkpoints, and each is damaged, or has not what is trained now; or there is none,
            and what the run ended with.
    """
    run.ranks.on_main(lambda: remove_partial(run.folder.checkpoints))
    newest, damaged = run.ranks.on_main(lambda: newest_checkpoint(run.folder.checkpoints), patiently=True)
    run.ranks.together(lambda: _require_shared(run, newest))
    tell(run.observer, *damaged)
    if newest is None and damaged:
        remedy = "put its files back as they were, or replace the run by `overwrite`"
        raise RunFolderError("no checkpoint is whole to go on from", where=run.folder.path, remedy=remedy)
    if newest is None:
        run.ranks.on_main(lambda: _require_no_result(run))
        run.observer(Note("there is no checkpoint to go on from: the run begins at step 0"))
        return False
    checkpoint = load_checkpoint(newest)
    _restore_weights(run, newest)
    if checkpoint.state.get("optim", run.settings.optim) == run.settings.optim:
        stored, trainable = checkpoint.optimizer, run.adapted.trainable
        restore_optimizer(run.optimizer, trainable, stored.names, stored.read, checkpoint.optimizer_numbers)
    else:
        run.observer(Note(f"training.optim was {checkpoint.state['optim']}: {run.settings.optim} begins anew"))
    if scaler := checkpoint.state["scaler"]:  # there is none of another dtype than float16
        run.scaler.load_state_dict(dict(scaler))
    vars(state).update(vars(RunState.stored(checkpoint.state)))
    state.finished = all_trained(run, state) or stops_early(run, state)
    tell(run.observer, *run.folder.cut_back(checkpoint.state["files"]))
    restore_rng(checkpoint.rng)
    run.ranks.on_main(lambda: rotate_checkpoints(run, state))  # a kill may have come between a checkpoint and this
    longer = "num_train_epochs" if run.settings.max_steps is None else "max_steps"
    if not all_trained(run, state):
        longer = "early_stopping_patience, or with null"
    again = f"its result is saved again from {newest.name}; to train on, `resume` with a greater training.{longer}"
    run.observer(Note(f"the run is finished: {again}" if state.finished else f"going on from {newest.name}"))
    if taken_on:
        run.observer(Note(f"since the run was begun, {'; '.join(taken_on)}: taken on"))
    if steps_before is not None and steps_before != run.plan.steps and not state.finished:
        run.observer(Note(rate_note(run.settings, step=state.step, before=steps_before, now=run.plan.steps)))
    return True


def _require_shared(run: Trainer, newest: Path | None) -> None:
    """Refuse a rank that does not see the checkpoint that rank 0 has verified."""
    known = [None if newest is None else _bytes_of(newest / MANIFEST), bool(checkpoints(run.folder.checkpoints))]
    seen = run.ranks.gathered(known)
    if known != seen[0]:
        message = f"rank {run.ranks.rank} does not see {newest.name if newest else 'that there is no checkpoint'}"
        remedy = "put training.output_dir on a disk that all machines share"
        raise RunFolderError(message, where=run.folder.path, key="training.output_dir", remedy=remedy)


def _bytes_of(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _restore_weights(run: Trainer, folder: Path) -> None:
    """Put the weights of a checkpoint back; that what is trained now has another form is refused."""
    place = weights_in(run, folder)
    try:
        if not place.is_dir():
            raise AdapterError("it was trained by another method")
        restore_weights(run, place)
    except AdapterError as error:
        message = f"{folder.name} has not what is trained now: {error.in_short}"
        remedy = "undo the change, or begin anew with another training.output_dir"
        raise RunFolderError(message, where=run.folder.path, remedy=remedy) from error


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of which two resolved configs have other values, and what these are; the run's folder is none."""
    for name in sorted({*before, *now}):
        key, old, new = f"{prefix}{name}", before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{key}.")
        elif old != new and key != SILENT:
            yield key, f"{key} was {_written(old)} and is {_written(new)}"


def _is_harmless(key: str, before: RunConfig, now: RunConfig, *, longer: bool) -> bool:
    """Whether the steps that were taken are those of the config whose `key` changed too; `longer` has no fewer."""
    if key == "training.eval_steps":  # with early stopping it decides where the run ends
        return before.training.early_stopping_patience is None and now.training.early_stopping_patience is None
    return key in HARMLESS or key.startswith("distributed.") or (key in LENGTH and longer)


def rate_note(training: TrainingSection, *, step: int, before: int, now: int) -> str:
    """What it does to the learning rate after `step` that a run has `now` steps, where it was begun with `before`."""
    begun = learning_rate(training, min(step + 1, before), before)
    taken = learning_rate(training, step + 1, now)
    goes_on = f"the run goes on to step {now} instead of {before}"
    if begun == taken:
        return f"{goes_on}, and the learning rate stays {taken:.3g}"
    old = f"it would have been {begun:.3g}" if step < before else f"it had come to {begun:.3g}"
    kind = f"(lr_scheduler_type {training.lr_scheduler_type})"
    return (
        f"{goes_on}: from here on the learning rate is that of a run of {now} steps {kind}, {taken:.3g} at step "
        f"{step + 1}, where {old}"
    )


def _written(value: object) -> str:
    """A value of a dumped config as a config says it; of a section inside a section what is said in it."""
    if isinstance(value, Mapping):
        value = {key: inner for key, inner in value.items() if inner is not None}
    return inline(tuple(value) if isinstance(value, list) else value)

"""What a run saves: checkpoints, whole or in the parts of its ranks, and its result; and weights put back from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from loraft.adapters.inject import AdaptedModel
from loraft.adapters.model_card import TrainingFacts
from loraft.adapters.save_adapter import restore, save_adapter, save_full
from loraft.distributed.part_files import PartFiles, restore_rows
from loraft.distributed.whole_model import gathered_in_turn, is_written_one_by_one, write_whole_model
from loraft.events import Note
from loraft.optimization.optimizer import OptimizerState, optimizer_state
from loraft.training.checkpoint import PARTS, RunState, fault_in_writing, prune, save_checkpoint, save_in_parts
from loraft.training.run_dir import saved_bytes
from loraft.training.train_step import Trainer


def save(run: Trainer, state: RunState) -> Path:
    """Save a checkpoint, which all ranks do together: where it lies."""
    run.ranks.on_main(run.folder.require)
    root, about = run.folder.checkpoints, sum(saved_bytes(run.plan))
    changing = partial(_all_that_changes, run, state)
    if saves_parts(run):
        tensors, numbers = optimizer_state(run.optimizer, run.adapted.trainable, in_parts=True)
        parts: dict[str, Mapping[str, Tensor]] = {"model": run.adapted.trainable, "optimizer": tensors}
        place = save_in_parts(root, state.step, run.ranks, parts, changing, numbers, about=about)
    else:
        with _to_be_saved(run) as (adapted, optimizer):
            write = partial(save_weights, run, state, adapted=adapted)
            place = run.ranks.on_main(
                lambda: save_checkpoint(root, state.step, write, changing(), optimizer, about=about)
            )
    run.ranks.on_main(lambda: rotate_checkpoints(run, state))
    return place


def saves_parts(run: Trainer) -> bool:
    """Whether each rank saves its part: of a model that is trained whole, where no rank has it."""
    return run.shards is not None and run.adapted.method == "full"


@contextmanager
def _to_be_saved(run: Trainer) -> Iterator[tuple[AdaptedModel, OptimizerState]]:
    """The model and the state of its optimizer, whole where they are written; all ranks enter this together."""
    main = run.ranks.main
    if run.shards is None:
        yield run.adapted, optimizer_state(run.optimizer, run.adapted.trainable) if main else ({}, {})
        return
    state = optimizer_state(run.optimizer, run.adapted.trainable, keep=main)
    with run.shards.whole(run.adapted, keep=main) as adapted:
        yield adapted, state


def _all_that_changes(run: Trainer, state: RunState) -> dict[str, Any]:
    changing = {"files": run.folder.sizes(), "scaler": run.scaler.state_dict(), "optim": run.settings.optim}
    return asdict(state) | changing


def save_result(run: Trainer, state: RunState) -> Path:
    """Save what is trained, as it is now, into the run's folder, in the format that others load: where it lies there.

    Of a model in parts that is trained whole, a tensor is whole as long as it is written.
    """
    model = run.adapted.loaded.model
    if not saves_parts(run) or not is_written_one_by_one(model):
        with _to_be_saved(run) as (adapted, _):
            return run.ranks.on_main(lambda: save_weights(run, state, run.folder.path, adapted), patiently=True)
    gathered = gathered_in_turn(model, keep=run.ranks.main)

    def save() -> Path:
        try:
            write = partial(write_whole_model, model, gathered)
            return save_weights(run, state, run.folder.path, run.adapted, write_weights=write)
        finally:
            deque(gathered, maxlen=0)  # others take part in them all

    if not run.ranks.main:
        deque(gathered, maxlen=0)
    return run.ranks.on_main(save, patiently=True)


def save_weights(
    run: Trainer, state: RunState, folder: Path, adapted: AdaptedModel, **how: Callable[[Path], None]
) -> Path:
    """Save what is trained, as it is now, into the folder of a checkpoint or a run: where it lies there."""
    data = run.plan.data
    facts = TrainingFacts(
        steps=state.step,
        epochs=state.epoch + state.window / run.plan.batches.steps(state.epoch),
        rows=sum(span.drawn for span in data.train_sources) or data.report.train_rows or len(data.train),
        trained_tokens=state.tokens,
        train_loss=state.last_loss,
        eval_loss=state.eval_loss,
        eval_rows=len(data.eval),
        figures=state.eval_figures,
    )
    save = save_full if adapted.method == "full" else save_adapter
    place = weights_in(run, folder)
    save(adapted, place, config=run.plan.config, renderer=run.plan.data.renderer, facts=facts, **how)
    return place


def weights_in(run: Trainer, folder: Path) -> Path:
    """Where the weights of a checkpoint or a run lie."""
    if run.adapted.method != "full":
        return folder / "adapter"
    return folder / (PARTS if (folder / PARTS).is_dir() else "model")


def restore_weights(run: Trainer, folder: Path) -> None:
    """Put the weights that a folder holds back; of a model that is trained whole each rank reads what it holds.

    Raises:
        AdapterError: The folder is damaged, or holds other tensors than the run trains.
    """
    files = PartFiles(sorted(folder.glob("model*.safetensors"))) if run.adapted.method == "full" else None
    if files is not None and files.names >= run.adapted.trainable.keys():
        restore_rows(run.adapted.trainable, files)
    elif run.shards is None:
        restore(run.adapted, folder)
    else:
        run.shards.restore(run.adapted, partial(restore, folder=folder))


def rotate_checkpoints(run: Trainer, state: RunState) -> None:
    """Remove the checkpoints that `training.save_total_limit` leaves no room for; the best one stays.

    So do all of them where the newest is not whole on the disk, which is said.
    """
    keep, newest = run.settings.save_total_limit, run.folder.checkpoints / f"step-{state.step:06d}"
    if (found := fault_in_writing(newest)) is not None:
        run.observer(Note(f"checkpoint {newest.name} is damaged ({found}): older ones are kept"))
        return
    prune(run.folder.checkpoints, step=state.step, keep=keep, best_step=state.best_step)

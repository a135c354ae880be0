"""Checkpoints: complete or absent, never half-written.

A checkpoint is written beside its place, flushed to the disk, given a manifest with the size and sha256 of every file,
and renamed. One whose files do not match its manifest does not exist for resuming.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraft.adapters.save_adapter import refuse_non_finite
from loraft.distributed.part_files import PartFiles, write_parts
from loraft.distributed.ranks import Ranks
from loraft.distributed.sharding import own_part
from loraft.errors import DiskFullError
from loraft.io.atomic import atomic_dir, remove, restore_previous, write_json
from loraft.io.checkpoint_folders import checkpoints, step_of
from loraft.io.checksums import NOT_READ, Seals, fault_by_manifest, is_weights, seal, seal_of
from loraft.io.resources import disk_errors, room_for
from loraft.io.sealed import sealed


@dataclass
class RunState:
    """Where a run is: all that changes from step to step besides tensors. A checkpoint holds it as JSON.

    Attributes:
        epoch: The epoch that the next step is in, from 0.
        window: The steps taken in that epoch.
        drawn: The rows of a stream that were drawn in that epoch.
        pieces: The pieces of the next row that were used.
        logged_loss: The loss summed since the last logged step, in nats.
        logged_weight: What that sum is divided by: the trained tokens since then, or the weights of the rows' classes.
        logged_router_loss: The routers' auxiliary loss of the steps since then, each times its part of that weight.
        grad_norm: The norm of the gradient of the newest step that was taken, before it was clipped.
        eval_figures: What else the newest evaluation measured.
        best_score: What the best evaluation is the best by: the higher, the better.
        worse: Evaluations since the best one.
        without_gradient: Logged steps in a row, up to the newest, whose gradient was as good as zero.
        skipped: Steps whose update was left out: their loss or gradient was not finite.
        skipped_in_a_row: Those up to the newest step.
        owes_evaluation: The evaluation due at this step has not been finished.
        finished: All steps are taken, or early stopping has ended the run.
    """

    step: int = 0
    epoch: int = 0
    window: int = 0
    drawn: int = 0
    pieces: int = 0
    tokens: int = 0
    logged_loss: float = 0.0
    logged_weight: float = 0.0
    logged_router_loss: float = 0.0
    grad_norm: float = 0.0
    last_loss: float | None = None
    eval_loss: float | None = None
    eval_figures: dict[str, float] = field(default_factory=dict)
    best_loss: float | None = None
    best_figures: dict[str, float] = field(default_factory=dict)
    best_score: float | None = None
    best_step: int | None = None
    worse: int = 0
    without_gradient: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    owes_evaluation: bool = False
    finished: bool = False

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> RunState:
        """As a checkpoint has it; what an earlier version did not write is as at the beginning."""
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})

    def begin_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch, self.window, self.drawn, self.pieces = self.epoch + 1, 0, 0, 0


MANIFEST = "manifest.json"
PARTS = "parts"
"""The folder of what ranks wrote, each its part: of the weights, and of the optimizer's state."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What resuming needs, besides the weights in the checkpoint's folder; `state` is more than a `RunState`."""

    state: Mapping[str, Any]
    optimizer: PartFiles
    optimizer_numbers: Mapping[str, int | float]
    rng: Mapping[str, Tensor]


def rng_state() -> dict[str, Tensor]:
    """The states of the generators that training draws from: torch's on the CPU and on the GPU that it trains on."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"cuda:{torch.cuda.current_device()}"] = torch.cuda.get_rng_state()
    return states


def restore_rng(states: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` gave; devices that are not here are left out."""
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))


def save_checkpoint(
    root: Path,
    step: int,
    write_weights: Callable[[Path], object],
    state: Mapping[str, Any],
    optimizer: tuple[Mapping[str, Tensor], Mapping[str, int | float]],
    *,
    about: int | None = None,
) -> Path:
    """Write the checkpoint of `step` into the run's `checkpoints` folder, and return its own.

    Args:
        root: The run's `checkpoints` folder.
        step: The optimizer step that was just finished.
        write_weights: Writes the trained weights into the folder it is given.
        state: As JSON takes it.
        optimizer: The optimizer's tensors and numbers.
        about: How many bytes it will take.

    Raises:
        DiskFullError: The disk is full; nothing of the unfinished checkpoint is left.
    """
    folder = root / f"step-{step:06d}"
    with _full_disk_told(root, step, about), atomic_dir(folder) as partial:
        write_weights(partial)
        save_file(dict(optimizer[0]), partial / "optimizer.safetensors")
        _complete(partial, state, optimizer[1], {})
    return folder


def save_in_parts(
    root: Path,
    step: int,
    ranks: Ranks,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Callable[[], Mapping[str, Any]],
    numbers: Mapping[str, int | float],
    *,
    about: int | None = None,
) -> Path:
    """Write a checkpoint to which each rank adds its part: complete once all have, and else absent.

    Args:
        root: As `save_checkpoint` has it, on a disk that all ranks see.
        step: The optimizer step that was just finished.
        ranks: Who writes; all of them call this.
        tensors: Those of the `model` and of the `optimizer`, of which each rank writes what it holds.
        state: Gives what JSON takes; rank 0 asks for it.
        numbers: The optimizer's.
        about: How many bytes all of it will take.

    Raises:
        DiskFullError: The disk is full on some rank; nothing of the unfinished checkpoint is left.
        NonFiniteError: A weight holds NaN or infinity; neither is then.
    """
    folder = root / f"step-{step:06d}"
    with ExitStack() as opened:

        def begin() -> Path:
            with _full_disk_told(root, step, about):
                partial = opened.enter_context(atomic_dir(folder))
                (partial / PARTS).mkdir()
            return partial

        def write() -> dict[str, dict[str, int | str]]:
            refuse_non_finite({name: own_part(weight.detach()) for name, weight in tensors["model"].items()}, folder)
            with _full_disk_told(root, step, about):
                parts = (write_parts(partial / PARTS, kind, own, ranks) for kind, own in tensors.items())
                return {f"{PARTS}/{file.name}": seal_of(file) for file in chain.from_iterable(parts)}

        def complete() -> Path:
            with _full_disk_told(root, step, about):
                _complete(partial, state(), numbers, dict(chain.from_iterable(part.items() for part in seals)))
                opened.close()
            return folder

        partial = ranks.on_main(begin)
        seals = ranks.gathered(ranks.together(write, patiently=True))
        return ranks.on_main(complete)


def _complete(folder: Path, state: Mapping[str, Any], numbers: Mapping[str, int | float], known: Seals) -> None:
    """Write what a checkpoint holds besides tensors, and the seals of its files, of which those of some are `known`."""
    save_file(rng_state(), folder / "rng.safetensors")
    write_json(folder / "state.json", {"state": dict(state), "optimizer_numbers": dict(numbers)})
    write_json(folder / MANIFEST, sealed({"files": {**known, **seal(folder, leave_out=known)}}))


@contextmanager
def _full_disk_told(root: Path, step: int, about: int | None) -> Iterator[None]:
    held = "the checkpoints before it are whole" if checkpoints(root) else "there is none before it, and it begins anew"
    remedy = f"free some space and go on with `resume`: {held}"
    try:
        with disk_errors(root, remedy=remedy):
            yield
    except DiskFullError as error:
        told, _, _ = error.problems[0].message.partition(": ")
        message = f"{told} while the checkpoint of step {step} was written: {room_for(_needed(root, about), root)}"
        raise DiskFullError(message, where=root, remedy=remedy) from error


def newest_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    damaged: list[str] = []
    for folder in checkpoints(root):
        found = checkpoint_fault(folder)
        if found is None:
            return folder, damaged
        damaged.append(f"checkpoint {folder.name} is damaged ({found}) and is passed over")
    return None, damaged


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that was verified."""
    written = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    optimizer = PartFiles(sorted((*folder.glob("optimizer.safetensors"), *folder.glob(f"{PARTS}/optimizer-*"))))
    rng = load_file(folder / "rng.safetensors")
    return Checkpoint(written["state"], optimizer, written["optimizer_numbers"], rng)


def checkpoint_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is there, with every file as its manifest says."""
    return fault_by_manifest(folder, folder / MANIFEST)


def fault_in_writing(folder: Path) -> str | None:
    """What is wrong with a checkpoint that was just written, told by sizes and headers; None where nothing is.

    A disk elsewhere may lose what it said it wrote. All of a file is read again only when a run resumes.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, sealed_as in files.items():
            if (folder / name).stat().st_size != sealed_as["bytes"]:
                return f"{name} is cut short"
            if is_weights(name):
                with safe_open(folder / name, framework="pt"):
                    pass
    except (*NOT_READ, SafetensorError) as error:
        return str(error)
    return None


def prune(root: Path, *, step: int, keep: int | None, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints up to that of `step`, and that of `best_step`.

    Checkpoints after `step` did not verify when the run resumed: they do not count, and are written again.
    """
    if keep is None:
        return
    taken = [folder for folder in checkpoints(root) if step_of(folder) <= step]
    for folder in taken[keep:]:
        if step_of(folder) != best_step:
            remove(folder)


def remove_partial(root: Path) -> None:
    """Remove what a kill left unfinished; of a checkpoint that was to be replaced, the old one is put back."""
    for previous in root.glob(".step-*.previous"):
        restore_previous(root / previous.name.removeprefix(".").removesuffix(".previous"))
    for left in (*root.glob(".step-*.partial*"), *root.glob(".step-*.previous")):
        remove(left)


def _needed(root: Path, about: int | None) -> int | None:
    """How many bytes a checkpoint takes, as the newest one tells; where there is none, as was reckoned."""
    found = checkpoints(root)
    return sum(path.stat().st_size for path in found[0].rglob("*") if path.is_file()) if found else about

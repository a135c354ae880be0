"""The folder of a run: its name, who holds it, and the files in it that are not checkpoints.

A run is not written over unless `overwrite` says so.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from loraft.config.config_file import dump_config
from loraft.config.schema import RunConfig
from loraft.errors import LoraftError, Problem, ResourceError, RunError, RunFolderError
from loraft.figures import counted
from loraft.io.atomic import remove, write_whole
from loraft.io.resources import existing_part, free_bytes
from loraft.io.sealed import sealed, sealed_text
from loraft.io.secrets import redacted_all
from loraft.optimization.optimizer import KINDS
from loraft.planning.known_run import KnownRun
from loraft.rows.places import files_here

RUNS = Path("runs")
LOCK = ".lock"
OURS = re.compile(r"\.lock|\.beside|trackers(\.before)?|\.(config\.yaml|manifest\.json)\.\d+")
"""What a run that was stopped before it began may have left."""
SECONDS_TO_BE_SEEN = 60
GO_ON = "free some space and go on with `resume`"


class RunFolder:
    """The files of one run, which this process writes, or only reads where another of its ranks does."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.frozen_prefix = path / "frozen_prefix"
        self.trackers, self.trackers_before = path / "trackers", path / "trackers.before"

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return self.config.exists() or self.metrics.exists() or self.checkpoints.exists()

    @property
    def result(self) -> Path | None:
        """The folder of what the run ended with; None where it has not."""
        return next((folder for folder in (self.path / "adapter", self.path / "model") if folder.exists()), None)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the folder this process's own.

        Raises:
            RunFolderError: Another process is writing to it, or it cannot be written.
        """
        lock, where = FileLock(self.path / LOCK), str(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise RunFolderError("another process is writing to this run", where=where) from None
        except OSError as error:
            message, named = f"cannot be written: {error.strerror}", error.filename or where
            raise RunFolderError(message, where=named, key="training.output_dir") from None
        try:
            yield
        finally:
            lock.release()

    def require_seen(self) -> None:
        """Wait until the folder that another process has opened is seen here too, which a network's disk may take.

        Raises:
            RunFolderError: It is not.
        """
        for _ in range(SECONDS_TO_BE_SEEN):
            if (self.path / LOCK).exists():
                return
            time.sleep(1)
        remedy = "name a folder on a disk that all machines share"
        raise RunFolderError("is not seen here", where=self.path, key="training.output_dir", remedy=remedy)

    def require(self) -> None:
        """Make sure that the folder is there still, before something is written that would make it anew.

        Raises:
            RunError: It was removed.
        """
        if not self.path.is_dir():
            message = "the run's folder was removed while the run went on, and what was trained with it"
            remedy = "begin anew, and remove the folder of a run only once the run has ended"
            raise RunError(message, where=self.path, remedy=remedy)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Turn what is raised where the folder is gone, or where a file in it cannot be written, into an error.

        Raises:
            RunError: It was.
        """
        try:
            yield
        except LoraftError:
            raise
        except Exception as error:
            self.require()
            if not isinstance(error, OSError) or not isinstance(error.filename, str):
                raise
            if not Path(error.filename).absolute().is_relative_to(self.path.absolute()):
                raise
            message = f"cannot be written: {error.strerror}"
            raise RunError(message, where=error.filename, remedy="go on with `resume`") from error

    def append(self, path: Path, record: Mapping[str, Any]) -> None:
        """Add one JSON line to `metrics` or `samples`; it is in the file when this returns.

        A number that is not finite is null there: JSON has no other word for it.
        """
        if not self.writes:
            return
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")

    def sizes(self) -> dict[str, int]:
        """The bytes of the files that grow, flushed: what a checkpoint must remember of them."""
        sizes = {}
        for path in (self.metrics, self.samples):
            if path.exists():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            sizes[path.name] = path.stat().st_size if path.exists() else 0
        return sizes

    def cut_back(self, sizes: Mapping[str, int]) -> list[str]:
        """Forget what was written to the growing files after the checkpoint that remembered `sizes`.

        Returns:
            A sentence for each file that has lost lines, or holds some that are no JSON: these are left out.
        """
        notes: list[str] = []
        for path in (self.metrics, self.samples) if self.writes else ():
            size = sizes.get(path.name, 0)
            if not path.exists():
                if size:
                    notes.append(f"{path.name} is missing: what was logged before is lost, and new lines follow")
                continue
            held = path.read_bytes()[:size]
            whole = [line for line in held.split(b"\n")[:-1] if _is_object(line)]
            kept = b"".join(line + b"\n" for line in whole)
            if len(kept) < size:
                notes.append(
                    f"{path.name} has lost lines since the checkpoint, or holds some that are no JSON: the "
                    f"{len(whole):,} that can be read are kept"
                )
            if kept == held:
                os.truncate(path, len(kept))
            else:
                write_whole(path, kept.decode(), remedy=GO_ON)
        return notes

    def describe(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        """Write what the run is, each file whole or not at all, and without tokens that a command line may hold."""
        if not self.writes:
            return
        values = config.model_dump(mode="json")
        if (told := redacted_all(values)) != values:
            config = RunConfig.model_validate(told)
        write_whole(self.config, sealed_text(dump_config(config)), remedy=GO_ON)
        write_whole(self.manifest, json.dumps(sealed(redacted_all(manifest)), indent=1) + "\n", remedy=GO_ON)

    @contextmanager
    def trackers_aside(self) -> Iterator[None]:
        """Lay what trackers wrote aside while those of a run open that replaces this one, and back where they fail."""
        self._lay_trackers_back()
        if os.path.lexists(self.trackers):
            self.trackers.rename(self.trackers_before)
        try:
            yield
        except BaseException:
            self._lay_trackers_back()
            raise

    def _lay_trackers_back(self) -> None:
        if os.path.lexists(self.trackers_before):
            if os.path.lexists(self.trackers):
                remove(self.trackers)
            self.trackers_before.rename(self.trackers)

    def empty(self) -> None:
        """Remove all but the lock and what trackers wrote since others were laid aside.

        The config, by which the folder is known as a run's, goes last.
        """
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry == self.config):
            if entry.name not in (LOCK, self.trackers.name):
                remove(entry)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def refuse_taken(folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a run may not be written to.

    Raises:
        RunFolderError: It holds a run and neither `resume` nor `overwrite` is set, or it is something else than the
            folder of a run.
    """
    path = folder.path
    if path.exists() and not path.is_dir():
        message, remedy = "is a file, not a folder", "name another folder"
    elif folder.holds_run and not (resume or overwrite):
        message = "holds a run already"
        remedy = "go on with it by `resume`, replace it by `overwrite`, or name another training.output_dir"
    elif not folder.holds_run and path.exists() and any(not OURS.fullmatch(entry.name) for entry in path.iterdir()):
        message, remedy = "holds files that are not a run's", "name a new or empty folder"
    else:
        return
    raise RunFolderError(message, where=path, key="training.output_dir", remedy=remedy)


def refuse_own_inputs(folder: RunFolder, config: RunConfig) -> None:
    """Refuse to replace a folder that what the run begins with lies in.

    Raises:
        RunFolderError: The model, the tokenizer, the adapter to go on from, or rows lie there.
    """
    sources = [
        ("model.name_or_path", config.model.name_or_path),
        ("model.tokenizer", config.model.tokenizer),
        ("lora.start_from", config.lora.start_from),
        *(("data.train", str(path)) for source in config.data.train for path in files_here(source.path)),
        *(("data.eval", str(path)) for source in config.data.eval_sources for path in files_here(source.path)),
        ("data.chat_template", config.data.chat_template),
    ]
    message, here = f"lies in {folder.path}, which `overwrite` would replace", folder.path.resolve()
    inside = []
    for key, name in sources:
        place = None if name is None else Path(name).expanduser()
        if place is not None and place.exists() and place.resolve().is_relative_to(here):
            inside.append(Problem(message, where=name, key=key))
    if inside:
        remedy = "name another training.output_dir"
        raise RunFolderError.several([*inside[:-1], replace(inside[-1], remedy=remedy)])


class SavedBytes(NamedTuple):
    """What a checkpoint holds, in bytes: the trained weights, with what they began with, and the optimizer's state."""

    trained: int
    optimizer: int


def saved_bytes(known: KnownRun) -> SavedBytes:
    """What a checkpoint of a run will hold, on however many ranks it lies."""
    states = map(KINDS[known.config.training.optim].state_bytes, known.shape.trained)
    return SavedBytes(4 * (known.shape.trainable_parameters + known.saved_starts), sum(states))


def check_disk(folder: Path, saved: SavedBytes, *, checkpoints: int, frozen_prefix: int = 0) -> None:
    """Refuse to start where so many checkpoints, and the bytes of `frozen_prefix`, will not fit on the disk.

    What the run's folder holds already takes no more: it is gone on with, and older checkpoints make room for new ones.

    Raises:
        RunFolderError: Nothing can be written there at all.
        ResourceError: Less is free than the checkpoints and the adapter need.
    """
    a_checkpoint = saved.trained + saved.optimizer + 16 * 2**20
    there = existing_part(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        message = f"cannot be made: nothing can be written to {there}"
        remedy = "name another training.output_dir, or make it one that you may write to"
        raise RunFolderError(message, where=folder, key="training.output_dir", remedy=remedy)
    free = free_bytes(there)
    held = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    if free + held < checkpoints * a_checkpoint + saved.trained + frozen_prefix:
        wanted = f"room is needed for {counted(checkpoints, 'checkpoint')} of {a_checkpoint / 1e9:.2f} GB"
        if frozen_prefix:
            wanted += f", and {frozen_prefix / 1e9:.2f} GB of what frozen layers give (training.cache_frozen_prefix)"
        raise ResourceError(
            f"{free / 1e9:.2f} GB are free on the disk, and {wanted}",
            where=folder,
            key="training.save_total_limit",
            remedy="free some space, keep fewer checkpoints, or name a training.output_dir on another disk",
        )


def choose_run_folder(output_dir: str | None, name: str, *, resume: bool) -> Path:
    """The folder of a run: `output_dir`, or `runs/NAME-N` with the next free N; to `resume`, the newest with a run."""
    if output_dir is not None:
        return Path(output_dir).expanduser()
    ends = [path.name.removeprefix(f"{name}-") for path in RUNS.glob(f"{escape(name)}-*")]
    numbers = [int(end) for end in ends if end.isdecimal()]
    begun = [number for number in numbers if RunFolder(RUNS / f"{name}-{number}").holds_run]
    return RUNS / f"{name}-{max(begun) if resume and begun else max(numbers, default=0) + 1}"


def left_unfinished(chosen: Path, name: str) -> Iterator[str]:
    """A sentence where a new run begins beside one of the same config that has checkpoints and no result yet."""
    before = choose_run_folder(None, name, resume=True)
    folder = RunFolder(before)
    if before != chosen and folder.checkpoints.exists() and folder.result is None:
        yield (
            f"{before} has not ended, and {chosen} begins anew; that one goes on by "
            f"`loraft.train(loraft.load_config({str(folder.config)!r}), resume=True)`"
        )

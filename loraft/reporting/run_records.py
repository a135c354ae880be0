"""What a run wrote down of itself: its config, its manifest, and each line of `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from loraft.config.config_file import load_config
from loraft.config.schema import RunConfig
from loraft.errors import RunFolderError
from loraft.figures import counted
from loraft.io.checkpoint_folders import newest_state
from loraft.io.sealed import is_text_as_sealed, read_sealed
from loraft.tasks import METRIC_FACTS
from loraft.tasks.task import TEXT_LOSS

Line = TypeVar("Line")


@dataclass(frozen=True)
class LoggedStep:
    """A logged step of training.

    Attributes:
        loss: The mean loss of a trained token since the last logged step, in nats.
        grad_norm: The norm of the gradient before clipping; infinite where it overflowed, which float16 does.
        tokens_per_second: Tokens in the batches, by the clock since the run began or was resumed.
        peak_bytes: The most memory held since the model was loaded.
    """

    step: int
    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class LoggedEvaluation:
    """An evaluation: the loss in nats of a trained token, of a classifier of a row, of pairs of one; other figures."""

    step: int
    epoch: float
    loss: float
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOutStep:
    """A step that changed nothing, since its loss or gradient was not finite, and why: with its rows."""

    step: int
    reason: str


READERS: Mapping[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (LoggedStep, LoggedEvaluation, LeftOutStep)
}


@dataclass(frozen=True)
class RunRecords:
    """A run as its files tell of it.

    Attributes:
        left_out: The steps that changed nothing.
        planned_steps: All optimizer steps of the run; None where its manifest does not say.
        predicted_bytes: The memory that was predicted for it; None where its manifest does not say.
        base: The base model, as the run calls it.
        device: What it ran on.
        ranks: How many processes trained it.
        finished: Its result was saved, and it was not gone on with since.
        notes: What a person should know, a sentence each.
    """

    folder: Path
    config: RunConfig
    steps: Sequence[LoggedStep]
    evaluations: Sequence[LoggedEvaluation]
    left_out: Sequence[LeftOutStep]
    planned_steps: int | None
    predicted_bytes: int | None
    base: str
    device: str
    ranks: int
    finished: bool
    notes: tuple[str, ...]

    @property
    def best(self) -> LoggedEvaluation | None:
        """The best evaluation by `training.metric_for_best_model`, the first of several; None where there is none."""
        metric = self.config.training.metric_for_best_model
        return max(self.evaluations, key=lambda each: each.figures.get(metric, -each.loss), default=None)

    @property
    def lowest(self) -> LoggedEvaluation | None:
        """The evaluation with the lowest loss; None where there is none."""
        return min(self.evaluations, key=lambda each: each.loss, default=None)


def read_records(folder: Path) -> RunRecords:
    """Read what a run wrote down; lines of `metrics.jsonl` that cannot be read are left out and counted.

    Raises:
        RunFolderError: No step was logged there.
        InvalidInputError: Its config cannot be read.
    """
    config = load_config(folder / "config.yaml")
    lines, unread = _lines(folder / "metrics.jsonl")
    steps, held, left_out = dict[int, LoggedStep](), dict[int, LoggedEvaluation](), dict[int, LeftOutStep]()
    for line in lines:
        if step := _step(line):
            steps[step.step] = step
        if seen := _evaluation(line):
            held[seen.step] = seen
        if gone := _read(LeftOutStep, line):
            left_out[gone.step] = gone
        unread += not (step or seen or gone)
    if not steps:
        message = "there is nothing to report: no step of the run was logged"
        remedy = "Let it train for training.logging_steps steps at least."
        raise RunFolderError(message, where=folder / "metrics.jsonl", remedy=remedy)
    manifest = read_sealed(folder / "manifest.json")
    planned = _part(manifest, "planned")
    notes = [] if not unread else [f"{counted(unread, 'line')} of metrics.jsonl cannot be read, and left out"]
    if not is_text_as_sealed(folder / "config.yaml"):
        notes.append("config.yaml was edited or damaged since the run wrote it: what it says now is told")
    if not manifest:
        notes.append("manifest.json is missing or damaged: what was planned, and on which device, is not known")
    return RunRecords(
        folder=folder,
        config=config,
        steps=[*steps.values()],
        evaluations=[*held.values()],
        left_out=[*left_out.values()],
        planned_steps=_whole(planned.get("steps")),
        predicted_bytes=_whole(planned.get("peak_bytes")),
        base=str(_part(manifest, "base").get("name") or config.model.name_or_path),
        device=str(_part(manifest, "hardware").get("device") or ""),
        ranks=_whole(manifest.get("ranks")) or 1,
        finished=_has_ended(folder, max(steps)),
        notes=tuple(notes),
    )


def has_result(folder: Path) -> bool:
    """Whether a run has saved what it came to, which stays there where it is gone on with."""
    return any((folder / name).is_dir() for name in ("adapter", "model"))


def _has_ended(folder: Path, last_step: int) -> bool:
    """Whether a run's result is that of its last step, by its newest checkpoint where that is there."""
    newest, state = newest_state(folder)
    if newest is None or not has_result(folder):
        return has_result(folder)
    return state.get("finished") is not False and last_step <= (_whole(state.get("step")) or last_step)


def _lines(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The JSON objects of a file that has one a line, and how many lines are none; nothing where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [], 0
    found = [_object(line) for line in text.split("\n") if line.strip()]
    return [each for each in found if each is not None], found.count(None)


def _object(line: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _step(line: Mapping[str, Any]) -> LoggedStep | None:
    if line.get("grad_norm", 0) is None:  # JSON has no infinity, and earlier versions wrote Python's
        line = {**line, "grad_norm": math.inf}
    return _read(LoggedStep, line)


def _evaluation(line: Mapping[str, Any]) -> LoggedEvaluation | None:
    found = _read(LoggedEvaluation, {**line, "loss": line.get("eval_loss"), "figures": dict(_figures(line))})
    return None if found is None or math.isnan(found.loss) else found


def _read(kind: type[Line], line: Mapping[str, Any]) -> Line | None:
    """What a line says, where it is of the kind."""
    try:
        found: Line = READERS[kind].validate_python(line)
    except ValidationError:
        return None
    return found


def _figures(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What an evaluation measured besides the loss, in the order of the tasks; perplexity says the same once more."""
    for name in (each for each in METRIC_FACTS if each not in TEXT_LOSS):
        if (value := _number(line.get(f"eval_{name}"))) is not None:
            yield name, value


def _part(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = manifest.get(name)
    return part if isinstance(part, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

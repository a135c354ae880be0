"""What full fine-tuning, LoRA and QLoRA each take, measured on the rows of a config: one method after the other.

Each is trained in a process of its own, so that none begins with what another left in memory. It loads without torch:
what is held here is not there for those processes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loraft.baselines.trial_defaults import METHODS, STEPS
from loraft.config.choices import Method
from loraft.config.config_file import takes_path
from loraft.config.schema import RunConfig
from loraft.errors import ConfigError, LoraftError, Problem, ResourceError, RunError
from loraft.events import Note, Observer, Progress, ignored, tell
from loraft.io.asked_process import Answer, ProcessEndedError, answers_of
from loraft.models.remote_code import as_trusted, is_trusted
from loraft.rows.standard_input import with_input_kept

Outcome = Literal["measured", "does not fit", "failed"]
Question = tuple[RunConfig, tuple[Method, ...], int, Path | None]
"""What a process is asked: the config, the methods, their steps, and where to train; without a place to plan them."""
SERVE = "from loraft.baselines.measure_method import serve; serve()"
TRUSTED = "trusted"
"""The argument of a process that may run the code of models, as the one that starts it may."""


@dataclass(frozen=True)
class MeasuredCost:
    """What a few steps of a method took.

    Attributes:
        frozen_bytes: The frozen weights by their precision; none where all are trained.
        total_parameters: All numbers, those of the adapter included.
        memory: Bytes by part: `runtime` is what the process held before the model, `activations` what remains of the
            peak beside the parts that are counted from tensors.
        loading_peak_bytes: The most that was held while the model was loaded.
        tokens_per_second: Of the steps after the first, which pays for what is made once.
        losses: The loss of each step before its update, in nats a trained token.
        last_loss: Their mean over the last quarter of the steps.
        saved_bytes: The adapter's file; of `full` the bytes of all weights.
        tokens: Tokens of all steps, prompts included.
        rows_digest: A checksum of the tokens of each batch in their order.
    """

    frozen_bytes: Mapping[str, int]
    trained_parameters: int
    total_parameters: int
    optim: str
    gradient_checkpointing: bool
    memory: Mapping[str, int]
    loading_peak_bytes: int
    tokens_per_second: float
    seconds: float
    losses: Sequence[float]
    last_loss: float
    saved_bytes: int
    rows: int
    tokens: int
    trained_tokens: int
    rows_digest: str


@dataclass(frozen=True)
class MethodCost:
    """What is known of a method.

    Attributes:
        predicted: The memory plan, as `check` gives it; with its `peak_bytes`.
        why: Why nothing was measured.
    """

    method: Method
    outcome: Outcome
    learning_rate: float
    predicted: Mapping[str, int]
    measured: MeasuredCost | None = None
    why: str | None = None


@dataclass(frozen=True)
class MethodComparison:
    """The methods beside one another, after the same steps on the same rows.

    Attributes:
        memory_of: What the peak is of: the process's resident memory, or what torch held on the GPU.
        tokens: What each method read, prompts included.
    """

    model: str
    task: str
    device: str
    memory_of: str
    steps: int
    rows: int
    tokens: int
    trained_tokens: int
    methods: tuple[MethodCost, ...]

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON shows it."""
        return asdict(self)


@as_trusted
@takes_path
def compare_methods(
    config: RunConfig,
    *,
    methods: Sequence[str] = METHODS,
    steps: int = STEPS,
    trust_remote_code: bool = False,
    observer: Observer = ignored,
) -> MethodComparison:
    """Train by each method for a few steps, one after the other, and tell what each took.

    All train on the same rows in the same order. A learning rate that the config sets is that of its own method; the
    others take it as the defaults of the methods stand to one another. Nothing is kept of what was trained.

    Args:
        config: The run, or the path of its file; its `method` and `training.max_steps` are replaced.
        methods: Some of `full`, `lora` and `qlora`.
        steps: Optimizer steps of each.
        observer: Is told what was decided and how far it is.
        trust_remote_code: Run the code that the model brings.

    Raises:
        InvalidInputError: Before any step, with every problem of the config under each method; or none would fit.
        RunError: None could be trained to the end, or the rows changed meanwhile.
    """
    chosen = _known(methods)
    if steps < 1:
        raise ConfigError(f"{steps} is not at least 1", parameter="steps")
    config = with_input_kept(config)  # the processes that try the methods have standard inputs of their own
    observer(Progress("planning", 0, len(chosen)))
    plans = _plans(config, chosen, steps)
    tell(observer, *_notes(plans))
    found = tuple(_cost(config, plan, steps, observer) for plan in plans)
    return _compared(found, plans[0], steps)


def _known(methods: Sequence[str]) -> tuple[Method, ...]:
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        message = f"{', '.join(map(repr, unknown))} is no method" if unknown else "names no method"
        raise ConfigError(message, parameter="methods", remedy=f"Name some of {', '.join(METHODS)}.")
    return tuple(method for method in METHODS if method in methods)


def _plans(config: RunConfig, methods: Sequence[Method], steps: int) -> list[Answer]:
    """What is known of each method before anything is loaded.

    Raises:
        InvalidInputError: With every problem; one that not all methods have names those that do.
    """
    plans: list[Answer] = []
    with closing(answers(_question(config, methods, steps, None))) as told:
        for answer in told:
            if answer["kind"] == "ended":
                raise LoraftError.from_json(answer["error"])
            plans.append(answer)
    found = {plan["method"]: LoraftError.from_json(plan["error"]) for plan in plans if plan["kind"] == "refused"}
    if not found:
        return plans
    refused: dict[Problem, list[str]] = {}
    for method, error in found.items():
        for problem in error.problems:
            refused.setdefault(problem, []).append(method)
    raise next(iter(found.values())).several(
        problem
        if len(by) == len(methods)
        else replace(problem, message=f"{problem.message} (method {' and '.join(by)})")
        for problem, by in refused.items()
    )


def _question(config: RunConfig, methods: Sequence[Method], steps: int, folder: str | None) -> bytes:
    return json.dumps([config.model_dump_json(exclude_unset=True), [*methods], steps, folder]).encode()


def asked_by(question: bytes) -> Question:
    """What a process is asked, of what it is given on standard input."""
    config, methods, steps, folder = json.loads(question)
    return RunConfig.model_validate_json(config), tuple(methods), steps, None if folder is None else Path(folder)


def answers(question: bytes) -> Generator[Answer]:
    """What a process answers to a question, as it comes; closing this ends the process.

    One that ends otherwise than it should says so in a last answer whose `kind` is `ended`.
    """
    try:
        yield from answers_of(SERVE, question, os.environ, *([TRUSTED] if is_trusted() else []))
    except ProcessEndedError as ended:
        yield {"kind": "ended", "error": RunError(str(ended)).as_json()}


def _notes(plans: Sequence[Answer]) -> Iterator[str]:
    """What there is to say, once, with the methods that it is of where it is not of all."""
    said: dict[str, list[str]] = {}
    for plan in plans:
        for note in plan["notes"]:
            said.setdefault(note, []).append(plan["method"])
    for note, methods in said.items():
        named = len(methods) == len(plans) or all(f"method {each}" in note for each in methods)
        yield note if named else f"{note} (method {' and '.join(methods)})"


def _cost(config: RunConfig, plan: Answer, steps: int, observer: Observer) -> MethodCost:
    """Train by one method in a process of its own; what goes wrong there is what is told of it."""
    method: Method = plan["method"]
    known = {"method": method, "learning_rate": plan["learning_rate"], "predicted": plan["predicted"]}
    if plan["too_large"] is not None:
        return MethodCost(**known, outcome="does not fit", why=plan["too_large"])
    observer(Progress(f"{method}: loading", 0, steps))
    done = 0
    with (
        tempfile.TemporaryDirectory(prefix="loraft-") as folder,
        closing(answers(_question(config, [method], steps, folder))) as told,
    ):
        for answer in told:
            if answer["kind"] == "step":
                done = answer["done"]
                observer(Progress(f"{method}: loss {answer['loss']:.4f}", done, steps))
            elif answer["kind"] == "measured":
                return MethodCost(**known, outcome="measured", measured=MeasuredCost(**answer["cost"]))
            else:
                problem = LoraftError.from_json(answer["error"]).problems[0]
                why = f"{problem.message}, after {done} of {steps} steps"
                observer(Note(f"{method} failed: {why}"))
                return MethodCost(**known, outcome="failed", why=why)
    raise AssertionError("the last answer is how it ended")


def _compared(found: tuple[MethodCost, ...], plan: Answer, steps: int) -> MethodComparison:
    """All methods, once it is sure that they trained on the same.

    Raises:
        ResourceError: None would fit.
        RunError: None was measured, or not on the same rows.
    """
    measured = [each.measured for each in found if each.measured is not None]
    if not measured:
        none_fits = all(each.outcome == "does not fit" for each in found)
        kind: type[LoraftError] = ResourceError if none_fits else RunError
        raise kind.several(Problem(f"method {each.method}: {each.why}") for each in found)
    first = measured[0]
    if any(each.rows_digest != first.rows_digest for each in measured):
        message = "the methods trained on different rows: the data changed while they were compared"
        raise RunError(message, remedy="Compare again, and leave the files as they are meanwhile.")
    return MethodComparison(
        **{key: plan[key] for key in ("model", "task", "device", "memory_of")},
        steps=steps,
        rows=first.rows,
        tokens=first.tokens,
        trained_tokens=first.trained_tokens,
        methods=found,
    )

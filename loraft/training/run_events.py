"""What a training run tells while it goes on, beside what all long work tells (`loraft.events`), and who logs it.

It is light, so that the command line may import it before torch. Trackers are observers of events and no part of the
loop: TensorBoard, Weights & Biases, MLflow and the others that accelerate knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraft.errors import ConfigError
from loraft.events import Event, Note, Observer
from loraft.io.secrets import redacted, redacted_all

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig

TRACKERS = "trackers"
"""The folder of a run in which trackers keep what they write."""
OURS = "metrics.jsonl is written always"
RUN_NAME_KEY = {"wandb": "name", "mlflow": "run_name", "trackio": "name", "swanlab": "experiment_name"}
"""What each tracker calls the name of a run when it is opened."""


@dataclass(frozen=True)
class RunStarted(Event):
    """The first optimizer step is about to be taken.

    Attributes:
        step: The last finished optimizer step: 0, or the step that the run was resumed from.
        epochs: All epochs of the run, a fraction where `max_steps` cuts the last one.
        total_parameters: The number of all numbers, the trained ones included.
    """

    run_folder: Path
    step: int
    steps: int
    epochs: float
    trainable_parameters: int
    total_parameters: int


@dataclass(frozen=True)
class StepDone(Event):
    """An optimizer step was taken; what a live progress line shows.

    Attributes:
        loss: The mean loss of a trained token in this step, in nats.
        tokens_per_second: Tokens in the batches, prompts included, by the clock since the run began or was resumed.
        peak_bytes: The most memory held since the model was loaded: the device's on CUDA, the process's on the CPU.
        seconds_left: The time left at the present rate.
        router_aux_loss: The auxiliary loss of a mixture's routers, without its coefficient; None where it counts
            nothing.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    peak_bytes: int
    seconds_left: float
    router_aux_loss: float | None = None


@dataclass(frozen=True)
class StepLogged(Event):
    """`logging_steps` optimizer steps were taken; one line of `metrics.jsonl`.

    Attributes:
        loss: The mean loss of a trained token since the last logged step, in nats.
        grad_norm: The norm of the gradient before clipping, at this step.
        tokens: All trained tokens so far.
        router_aux_loss: The mean of the routers' auxiliary loss since then, which `loss` leaves out.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    peak_bytes: int
    seconds_left: float
    router_aux_loss: float | None = None


@dataclass(frozen=True)
class StepSkipped(Event):
    """A step whose loss or gradient is not finite changed nothing; one line of `metrics.jsonl`.

    Attributes:
        skipped: How many of them there were so far.
        reason: What was not finite, on which rows, and where in the model it began.
    """

    step: int
    epoch: float
    skipped: int
    reason: str


@dataclass(frozen=True)
class Evaluated(Event):
    """The evaluation rows were read once.

    Attributes:
        loss: Total negative log-likelihood over total trained tokens, in nats.
        perplexity: exp(loss).
        tokens: The number of tokens the loss is a mean of.
        best: Whether no evaluation before it was better.
        figures: `accuracy` and `macro_f1` of a classifier; none of other models.
    """

    step: int
    epoch: float
    loss: float
    perplexity: float
    tokens: int
    rows: int
    best: bool
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleAnswered(Event):
    """One of `training.sample_prompts` was answered by the model as it is at this step."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint or the adapter was written."""

    step: int
    folder: Path


@contextmanager
def tracked(observer: Observer, config: RunConfig, folder: Path) -> Iterator[Observer]:
    """An observer that passes every event on to `observer`, and the metrics among them to the trackers as well.

    A tracker that fails on the way, as where its server is gone, is told of and left out from then on.

    Raises:
        ConfigError: One cannot be opened.
    """
    if not config.training.report_to:
        yield observer
        return
    trackers = _opened(config, folder)

    def each(act: Callable[[Any], object]) -> None:
        for tracker in list(trackers):
            try:
                act(tracker)
            except Exception as error:  # each has its own
                trackers.remove(tracker)
                observer(Note(f"{tracker.name} is told no more of the run ({redacted(_in_short(error))}): {OURS}"))

    def log(values: Mapping[str, float], step: int) -> None:
        each(lambda tracker: tracker.log(values, step=step))

    def track(event: Event) -> None:
        if isinstance(event, StepLogged):
            names = ("loss", "router_aux_loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second")
            values = {f"train/{name}": value for name in names if (value := getattr(event, name)) is not None}
            log(values, event.step)
        elif isinstance(event, StepSkipped):
            log({"train/skipped": event.skipped}, event.step)
        elif isinstance(event, Evaluated):
            values = {"loss": event.loss, **(event.figures or {"perplexity": event.perplexity})}
            log({f"eval/{key}": value for key, value in values.items()}, event.step)
        observer(event)

    try:
        yield track
    finally:
        each(lambda tracker: tracker.finish())  # `end_training` would end the group of the ranks as well


def _opened(config: RunConfig, folder: Path) -> list[Any]:
    """The trackers of a run, which know its config.

    Raises:
        ConfigError: One cannot be opened.
    """
    from accelerate import Accelerator

    settings = config.training
    accelerator = Accelerator(cpu=True, log_with=list(settings.report_to), project_dir=str(folder / TRACKERS))
    name = settings.run_name or folder.name
    named = {tracker: {RUN_NAME_KEY[tracker]: name} for tracker in settings.report_to if tracker in RUN_NAME_KEY}
    told = dict(_flat(redacted_all(config.model_dump(mode="json"))))
    try:
        accelerator.init_trackers(settings.project or "loraft", config=told, init_kwargs=named)
    except Exception as error:  # each has its own
        message = f"{', '.join(settings.report_to)} cannot be opened: {_in_short(error)}"
        remedy = f"log in, see that its server answers, or leave it out; {OURS}"
        raise ConfigError(message, key="training.report_to", remedy=remedy) from error
    return list(accelerator.trackers)


def _in_short(error: Exception) -> str:
    """The first line of what an error says, or what it is called."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """The config as trackers take it: dotted keys with plain values."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float | bool) else str(value)

"""Who logs the metrics of a run besides: TensorBoard, Weights & Biases, MLflow and the others that accelerate knows.

Trackers are observers of events, and no part of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from loraft.config.schema import RunConfig
from loraft.errors import ConfigError, first_line
from loraft.events import Event, Note, Observer
from loraft.io.secrets import redacted, redacted_all
from loraft.training.run_dir import RunFolder
from loraft.training.run_events import Evaluated, StepLogged, StepSkipped

OURS = "metrics.jsonl is written always"
RUN_NAME_KEY = {"wandb": "name", "mlflow": "run_name", "trackio": "name", "swanlab": "experiment_name"}
"""What each tracker calls the name of a run when it is opened."""


@contextmanager
def tracked(observer: Observer, config: RunConfig, folder: RunFolder, *, anew: bool = False) -> Iterator[Observer]:
    """An observer that passes every event on to `observer`, and the metrics among them to the trackers as well.

    A tracker that fails on the way, as where its server is gone, is told of and left out from then on. What those of a
    run wrote that is replaced (`anew`) is laid aside.

    Raises:
        ConfigError: One cannot be opened.
    """
    with folder.trackers_aside() if anew else nullcontext():
        trackers = _opened(config, folder)
    if not trackers:
        yield observer
        return

    def each(act: Callable[[Any], object]) -> None:
        for tracker in list(trackers):
            try:
                act(tracker)
            except Exception as error:  # each has its own
                trackers.remove(tracker)
                observer(Note(f"{tracker.name} is told no more of the run ({redacted(first_line(error))}): {OURS}"))

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


def _opened(config: RunConfig, folder: RunFolder) -> list[Any]:
    """The trackers of a run, which know its config.

    Raises:
        ConfigError: One cannot be opened.
    """
    settings = config.training
    if not settings.report_to:
        return []
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, log_with=list(settings.report_to), project_dir=str(folder.trackers))
    name = settings.run_name or folder.path.name
    named = {tracker: {RUN_NAME_KEY[tracker]: name} for tracker in settings.report_to if tracker in RUN_NAME_KEY}
    told = dict(_flat(redacted_all(config.model_dump(mode="json"))))
    try:
        accelerator.init_trackers(settings.project or "loraft", config=told, init_kwargs=named)
    except Exception as error:  # each has its own
        message = f"{', '.join(settings.report_to)} cannot be opened: {first_line(error)}"
        remedy = f"log in, see that its server answers, or leave it out; {OURS}"
        raise ConfigError(message, key="training.report_to", remedy=remedy) from error
    return list(accelerator.trackers)


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """The config as trackers take it: dotted keys with plain values."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float | bool) else str(value)

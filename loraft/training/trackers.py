"""Trackers: a run's metrics on TensorBoard, Weights & Biases, MLflow and the others that accelerate knows.

This module is an observer of events and no part of the loop. accelerate leaves out a tracker whose package is
missing with a line in its log; here that is an error before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from loraft.config.schema import RunConfig
from loraft.errors import EXTRAS, Problem, lacking
from loraft.events import Event, Observer
from loraft.training.run_dir import TRACKERS
from loraft.training.run_events import Evaluated, StepLogged

RUN_NAME_KEY = {"wandb": "name", "mlflow": "run_name", "trackio": "name", "swanlab": "experiment_name"}
"""What each tracker calls the name of a run when it is opened."""


def tracker_problems(report_to: tuple[str, ...]) -> list[Problem]:
    """What is wrong with `training.report_to`: names that nothing has, and packages that are not installed."""
    installed = {str(tracker) for tracker in get_available_trackers()}
    known = sorted(LOGGER_TYPE_TO_CLASS)
    problems = []
    for name in report_to:
        if name not in known:
            problems.append(
                Problem(f"{name!r} is no tracker", key="training.report_to", remedy=f"one of {', '.join(known)}")
            )
        elif name in EXTRAS and (problem := lacking(name, f"{name!r}", key="training.report_to")):
            problems.append(problem)
        elif name not in installed:
            problems.append(
                Problem(
                    f"the package of {name} is not installed",
                    key="training.report_to",
                    remedy=f"install it with pip, or leave {name} out; metrics.jsonl is written always",
                )
            )
    return problems


@contextmanager
def tracked(observer: Observer, config: RunConfig, folder: Path) -> Iterator[Observer]:
    """An observer that passes every event on to `observer`, and the metrics among them to the trackers as well."""
    settings = config.training
    if not settings.report_to:
        yield observer
        return
    accelerator = Accelerator(cpu=True, log_with=list(settings.report_to), project_dir=str(folder / TRACKERS))
    name = settings.run_name or folder.name
    accelerator.init_trackers(
        settings.project or "loraft",
        config=dict(_flat(config.model_dump(mode="json"))),
        init_kwargs={
            tracker: {RUN_NAME_KEY[tracker]: name} for tracker in settings.report_to if tracker in RUN_NAME_KEY
        },
    )

    def track(event: Event) -> None:
        if isinstance(event, StepLogged):
            values = {"loss": event.loss, "grad_norm": event.grad_norm, "learning_rate": event.learning_rate}
            rates = {"epoch": event.epoch, "tokens_per_second": event.tokens_per_second}
            accelerator.log({f"train/{key}": value for key, value in (values | rates).items()}, step=event.step)
        elif isinstance(event, Evaluated):
            measured = event.figures or {"perplexity": event.perplexity}
            values = {"loss": event.loss, **measured}
            accelerator.log({f"eval/{key}": value for key, value in values.items()}, step=event.step)
        observer(event)

    try:
        yield track
    finally:
        accelerator.end_training()


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """The config as trackers take it: dotted keys with plain values."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float | bool) else str(value)

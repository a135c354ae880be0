"""The metrics that are asked for, by their names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from loraft.errors import DataError
from loraft.evaluation.metrics import is_valid_json
from loraft.io.extras import lacking
from loraft.tasks import TASKS
from loraft.tasks.task import ROUGE, Task

PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", **dict.fromkeys(ROUGE, "rouge_score")}
"""The packages that compute metrics, where not loraft does."""
GROUPS = {"rouge": ROUGE}
"""Several figures under one name."""


def known_metrics(names: Sequence[str], task: Task | None = None) -> tuple[str, ...]:
    """The figures that are meant, each once, groups taken apart.

    Args:
        names: As they were given.
        task: Whose figures alone are proposed where a name is wrong.

    Raises:
        DataError: A name is none that any task knows; the nearest one is named.
    """
    every = tuple(dict.fromkeys([*(name for task in TASKS.values() for name in _names(task)), *GROUPS]))
    by_lower_case = {name.lower(): name for name in every}
    found: list[str] = []
    for given in names:
        name = by_lower_case.get(given.strip().lower().replace("-", "_"))
        if name is None:
            offered = every if task is None else _names(task)
            nearest = _nearest(given.strip(), offered)
            remedy = f"{f'Did you mean {nearest}? ' if nearest else ''}The metrics are {', '.join(offered)}."
            raise DataError(f"there is no metric {given.strip()!r}", parameter="metrics", remedy=remedy)
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))


def _nearest(given: str, offered: Sequence[str]) -> str | None:
    """The metric that begins as what was given does, or else is spelt alike."""
    begin = [name for name in offered if name.lower().startswith(given.lower())]
    return next(iter(begin or difflib.get_close_matches(given.lower(), offered, n=1)), None)


def chosen_metrics(asked: Sequence[str] | None, task: Task, references: Collection[str]) -> tuple[str, ...]:
    """The figures that are computed besides the loss.

    Args:
        asked: Those that were asked for, as `known_metrics` gives them; None leaves it to the task.
        task: What is evaluated was trained for it.
        references: The right answers of the rows that have one.

    Raises:
        DataError: One that was asked for is not of this task, has no references, or its package is absent.
    """
    metrics = task.metrics
    if asked is None:
        if not references:
            return ()
        _require_packages(metrics.default)
        all_json = bool(metrics.where_json) and all(map(_is_json_structure, references))
        return metrics.default + (metrics.where_json if all_json else ())
    wanted = tuple(name for name in asked if name not in metrics.always)
    if unfit := [name for name in wanted if name not in metrics.offered]:
        others = [other.name for other in TASKS.values() if unfit[0] in _names(other)]
        message = f"{unfit[0]} measures {' and '.join(others)}, and this is {task.name}"
        raise DataError(message, parameter="metrics", remedy=f"There are {', '.join(_names(task))}.")
    if wanted and not references:
        message = f"{wanted[0]} compares answers with references, and no row has one"
        remedy = "Plain text has only a loss; rows of messages or of prompt and completion have references."
        raise DataError(message, parameter="metrics", remedy=remedy)
    _require_packages(wanted)
    return wanted


def _require_packages(names: Sequence[str]) -> None:
    """Refuse metrics whose package is not installed.

    Raises:
        DataError: One is not; with the extra that brings it.
    """
    needed = {PACKAGES[name]: name for name in reversed(names) if name in PACKAGES}
    absent = (lacking(package, name, parameter="metrics") for package, name in needed.items())
    if problems := [problem for problem in absent if problem is not None]:
        raise DataError.several(problems)


def _names(task: Task) -> tuple[str, ...]:
    """Every metric of a task."""
    return (*task.metrics.always, *task.metrics.offered)


def _is_json_structure(text: str) -> bool:
    """Whether a text is a JSON object or list: a bare number is JSON too, but says nothing of what was meant."""
    return text.lstrip().startswith(("{", "[")) and is_valid_json(text)

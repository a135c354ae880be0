"""Which figures belong to which task: one row of a table for each."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from loraft.errors import DataError
from loraft.evaluation.label_metrics import LABEL_METRICS
from loraft.evaluation.metrics import is_valid_json
from loraft.evaluation.text_metrics import ROUGE_NAMES, TEXT_METRICS

__all__ = ["ALWAYS", "TASKS", "TaskMetrics", "chosen_metrics", "known_metrics"]

KEY = "--metrics"
ALWAYS = ("loss", "perplexity")
"""What every evaluation of text gives."""
GROUPS = {"rouge": ROUGE_NAMES}
"""Several figures under one name."""


@dataclass(frozen=True)
class TaskMetrics:
    """The figures of a task, besides the loss.

    Attributes:
        offered: Those that may be asked for.
        default: Those that are given where nobody asks.
        where_json: Those that are given besides where every reference is a JSON object or list.
    """

    offered: tuple[str, ...]
    default: tuple[str, ...]
    where_json: tuple[str, ...] = ()


TASKS: Mapping[str, TaskMetrics] = {
    "causal_lm": TaskMetrics(tuple(TEXT_METRICS), ("exact_match",), ("valid_json",)),
    "seq2seq_lm": TaskMetrics(tuple(TEXT_METRICS), ("bleu", "chrf", *ROUGE_NAMES, "exact_match")),
    "seq_cls": TaskMetrics(LABEL_METRICS, LABEL_METRICS),
}


def known_metrics(names: Sequence[str], task: str | None = None) -> tuple[str, ...]:
    """The figures that are meant, each once, groups taken apart.

    Args:
        names: As they were given.
        task: Whose figures alone are proposed where a name is wrong.

    Raises:
        DataError: A name is none that any task knows; the nearest one is named.
    """
    every = tuple(dict.fromkeys([*ALWAYS, *(name for task in TASKS.values() for name in task.offered), *GROUPS]))
    by_lower_case = {name.lower(): name for name in every}
    found: list[str] = []
    for given in names:
        name = by_lower_case.get(given.strip().lower().replace("-", "_"))
        if name is None:
            offered = every if task is None else (*_always(task), *TASKS[task].offered)
            nearest = _nearest(given.strip(), offered)
            remedy = f"{f'Did you mean {nearest}? ' if nearest else ''}The metrics are {', '.join(offered)}."
            raise DataError(f"there is no metric {given.strip()!r}", where=KEY, remedy=remedy)
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))


def _nearest(given: str, offered: Sequence[str]) -> str | None:
    """The metric that begins as what was given does, or else is spelt alike."""
    begin = [name for name in offered if name.lower().startswith(given.lower())]
    return next(iter(begin or difflib.get_close_matches(given.lower(), offered, n=1)), None)


def chosen_metrics(asked: Sequence[str] | None, task: str, references: Collection[str]) -> tuple[str, ...]:
    """The figures that are computed besides the loss.

    Args:
        asked: Those that were asked for, as `known_metrics` gives them; None leaves it to the task.
        task: As a config says it.
        references: The right answers of the rows that have one.

    Raises:
        DataError: One that was asked for is not of this task, or has nothing to compare answers with.
    """
    offered, always = TASKS[task], _always(task)
    if asked is None:
        if not references:
            return ()
        all_json = bool(offered.where_json) and all(map(_is_json_structure, references))
        return offered.default + (offered.where_json if all_json else ())
    wanted = tuple(name for name in asked if name not in always)
    if unfit := [name for name in wanted if name not in offered.offered]:
        others = [other for other, metrics in TASKS.items() if unfit[0] in (*metrics.offered, *_always(other))]
        message = f"{unfit[0]} measures {' and '.join(others)}, and this is {task}"
        raise DataError(message, where=KEY, remedy=f"There are {', '.join((*always, *offered.offered))}.")
    if wanted and not references:
        message = f"{wanted[0]} compares answers with references, and no row has one"
        remedy = "Plain text has only a loss; rows of messages or of prompt and completion have references."
        raise DataError(message, where=KEY, remedy=remedy)
    return wanted


def _always(task: str) -> tuple[str, ...]:
    """What every evaluation of a task gives: a class has no perplexity."""
    return tuple(name for name in ALWAYS if task != "seq_cls" or name != "perplexity")


def _is_json_structure(text: str) -> bool:
    """Whether a text is a JSON object or list: a bare number is JSON too, but says nothing of what was meant."""
    return text.lstrip().startswith(("{", "[")) and is_valid_json(text)

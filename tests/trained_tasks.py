"""Which tasks `check` and `train` take so far: the one place that tests of every task look at."""

from __future__ import annotations

from typing import Any

import pytest

from loraft.config.schema import Task

__all__ = ["TASKS", "trained"]

TASKS: tuple[Task, ...] = ("causal_lm", "seq2seq_lm", "seq_cls")
TRAINED: tuple[Task, ...] = ("causal_lm",)
"""Add a task here once `check` and `train` take it, and its tests run."""


def trained(task: Task, *values: object, **options: Any) -> Any:
    """A parameter of a test that is skipped while its task is not trained."""
    marks = [] if task in TRAINED else [pytest.mark.skip(reason=f"check and train do not take task {task} yet")]
    return pytest.param(task, *values, marks=marks, **options)

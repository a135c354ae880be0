"""The command that tries what was made: what a person would type next."""

from __future__ import annotations

import shlex

from loraft.config.sections import TaskName
from loraft.tasks import TASKS


def try_it(task: TaskName, target: str) -> str:
    """The command that lets `target` do what it was trained for."""
    return shlex.join(TASKS[task].try_command(target))

"""The command that tries what was made: what a person would type next."""

from __future__ import annotations

from loraft.cli.wording import in_options
from loraft.config.choices import TaskName


def try_it(task: TaskName, target: str) -> str:
    """The command that lets `target` do what it was trained for."""
    from loraft.tasks import TASKS

    return in_options(f"`{TASKS[task].try_call(target)}`")

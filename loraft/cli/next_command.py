"""The command that tries what was made: what a person would type next."""

from __future__ import annotations

import shlex

from loraft.config.schema import TaskName

__all__ = ["try_it"]


def try_it(task: TaskName, target: str) -> str:
    """The command that lets `target` do what it was trained for."""
    verb, option = ("predict", "--text") if task == "seq_cls" else ("generate", "--prompt")
    return f"loraft {verb} {shlex.quote(target)} {option} TEXT"

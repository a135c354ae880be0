"""What differs between tasks is in `loraft/tasks/` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from loraft.config.choices import TASKS_OF_GROUP, TaskName
from loraft.rows import formats, labels
from loraft.tasks import TASKS
from loraft.tasks.task import Task
from tests.parsed import nodes

LIBRARY = Path(formats.__file__).parent.parent
ABOVE = [
    path
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.parent.name not in ("tasks", "tokenization") and path not in map(Path, (formats.__file__, labels.__file__))
]
"""Every file but those that tasks are made of: their records, how these become tokens, and the tasks themselves."""
NAMES_OF_TASKS = {"config/schema.py", "config/sections.py", "config/choices.py", "config/aliases.py"}
"""Where the names of tasks stand: in the schema, and beside the words that other tools have for them."""
OWN = ("Record", "Example", "Batch", "Loss", "Renderer", "Conversation", "PromptCompletion")
"""How the names of what a task alone looks into end."""


def named(node: ast.expr) -> Iterator[str]:
    """The classes that the second argument of `isinstance` names."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr


def test_no_file_but_the_tasks_asks_which_task_it_is() -> None:
    found = [
        f"{path.relative_to(LIBRARY)}:{node.lineno}: {node.value}"
        for path in ABOVE
        if path.relative_to(LIBRARY).as_posix() not in NAMES_OF_TASKS
        for node in nodes(path)
        if isinstance(node, ast.Constant) and node.value in get_args(TaskName)
    ]
    assert found == []


def test_no_file_but_the_tasks_asks_what_kind_a_row_or_a_batch_is() -> None:
    found = [
        f"{path.relative_to(LIBRARY)}:{node.lineno}: {ast.unparse(node)}"
        for path in ABOVE
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if any(name.endswith(OWN) for name in named(node.args[1]))
    ]
    assert found == []


def test_every_name_in_the_schema_is_a_task_and_every_task_has_all_that_it_must() -> None:
    assert tuple(TASKS) == get_args(TaskName)
    needed = [name for name in Task.__annotations__ if not hasattr(Task, name)]
    for name, task in TASKS.items():
        assert task.name == name
        assert [each for each in needed if not hasattr(task, each)] == []
        assert set(task.only_if_asked) <= set(task.formats)
        assert task.starter_rows[1] in task.formats
        assert set(task.metrics.default) <= set(task.metrics.offered)
        assert name in TASKS_OF_GROUP[task.group]

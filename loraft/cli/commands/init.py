"""`loraft init`: a first config, from a file of rows."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

import typer

from loraft.cli.console import print_json, print_note, print_result, waiting
from loraft.cli.options import JsonOption, argument, column_names, columns_option, flag, option
from loraft.cli.text_tables import print_document
from loraft.cli.wording import with_options
from loraft.config.choices import DEFAULT_TASK, Method, RowFormat, TaskName

if TYPE_CHECKING:
    from loraft.dataset.dataset_profile import DatasetProfile

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class StartOptions:
    """What a first config says."""

    path: str = argument("PATH", "The YAML file to write.")
    data: str | None = option("DATA", "The rows: a file, a Hub dataset, or builtin:tickets.")
    task: TaskName | None = option(None, "What is learned [default: what the rows are for].")
    method: Method | None = option(None, "How it is learned [default: lora].")
    model: str | None = option("MODEL", "The base model [default: a small one].")
    columns: str | None = columns_option()
    row_format: RowFormat | None = option(None, "The format of the rows [default: by their columns].", "--format")
    overwrite: bool = flag("Replace the file that is there.")


def init(given: StartOptions, as_json: JsonOption = False) -> None:
    """Write a commented config to start with.

    Looks at the rows, and proposes task, format, lengths and classes by what they hold. What no option says is asked
    on a terminal; elsewhere the proposal is taken. `loraft check` passes what is written.
    """
    names, path = column_names(given.columns), Path(given.path)
    task, method, model = given.task, given.method, given.model
    with waiting("looking at the rows"):
        from loraft.dataset.dataset_profile import profile_dataset
        from loraft.inspection.first_config import check_place, start, task_of_model

        check_place(path, given.data, overwrite=given.overwrite)
        found = None
        if given.data is not None:
            likely = task or task_of_model(model)
            found = profile_dataset(given.data, task=likely, columns=names, row_format=given.row_format)
    if _on_a_terminal():
        task = task or task_of_model(model) or _asked_task(found)
        method = method or _asked_method()
        model = model or _asked_model(task)
    with waiting("writing the config"):
        written = start(
            path,
            task=task,
            method=method or "lora",
            model=model,
            data=given.data,
            columns=names,
            row_format=given.row_format,
            overwrite=given.overwrite,
        )
    print_note(*written["notes"])
    if as_json:
        print_json(with_options(written, "notes"))
        return
    facts = {key: value for key, value in written.items() if key != "notes" and value not in ({}, None)}
    print_document(facts, rest="written")
    name = shlex.quote(given.path)
    print_result(f"Next:  loraft preview {name}\n       loraft check {name}\n       loraft train {name}")


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _asked_task(found: DatasetProfile | None) -> TaskName:
    proposed = found.fit.task if found is not None else DEFAULT_TASK
    return _asked("task", get_args(TaskName), proposed)


def _asked_method() -> Method:
    lora: Method = "lora"
    return _asked("method", ("lora", "qlora", "full"), lora)


def _asked_model(task: TaskName) -> str:
    from loraft.tasks import TASKS

    return str(typer.prompt("model", default=TASKS[task].starter_model, err=True))


def _asked(what: str, choices: Sequence[Choice], proposed: Choice) -> Choice:
    """One of the choices, asked until it is one."""
    while True:
        said = typer.prompt(f"{what} ({', '.join(choices)})", default=proposed, err=True)
        for choice in choices:
            if said == choice:
                return choice
        typer.echo(f"{said!r} is none of them.", err=True)

"""`loraft init`: a first config, from a file of rows."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from loraft.cli.options import ColumnsOption, JsonOption, column_names
from loraft.cli.runner import handle_errors
from loraft.cli.wording import with_options
from loraft.config.choices import DEFAULT_TASK, Method, RowFormat, TaskName

if TYPE_CHECKING:
    from loraft.dataset.detect_format import DatasetProfile

Choice = TypeVar("Choice", bound=str)


@handle_errors
def init(
    path: Annotated[str, typer.Argument(metavar="PATH", show_default=False, help="The YAML file to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", show_default=False, help="The rows: a file, a Hub dataset, or builtin:tickets."
        ),
    ] = None,
    task: Annotated[
        TaskName | None,
        typer.Option("--task", show_default=False, help="What is learned [default: what the rows are for]."),
    ] = None,
    method: Annotated[
        Method | None, typer.Option("--method", show_default=False, help="How it is learned [default: lora].")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", show_default=False, help="The base model [default: a small one]."),
    ] = None,
    columns: ColumnsOption = None,
    row_format: Annotated[
        RowFormat | None,
        typer.Option("--format", show_default=False, help="The format of the rows [default: by their columns]."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented config to start with.

    Looks at the rows, and proposes task, format, lengths and classes by what they hold. What no option says is asked
    on a terminal; elsewhere the proposal is taken. `loraft check` passes what is written.
    """
    names = column_names(columns)

    from loraft.cli.console import print_json, print_note, print_result, waiting
    from loraft.cli.text_tables import document

    with waiting("looking at the rows"):
        from loraft.inspection.first_config import check_place, profile_for_start, start, task_of_model

        check_place(Path(path), data, overwrite=overwrite)
        found = profile_for_start(data, task or task_of_model(model), names, row_format)
    if _on_a_terminal():
        task = task or task_of_model(model) or _asked_task(found)
        method = method or _asked_method()
        model = model or _asked_model(task)
    with waiting("writing the config"):
        started = start(
            Path(path),
            task=task,
            method=method or "lora",
            model=model,
            data=data,
            columns=names,
            row_format=row_format,
            overwrite=overwrite,
        )
    for note in started.notes:
        print_note(note)
    if as_json:
        print_json(with_options(started.as_dict(), "notes"))
        return
    facts = {key: value for key, value in started.as_dict().items() if key != "notes" and value not in ({}, None)}
    print_result(*document(facts, rest="written"))
    name = shlex.quote(path)
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

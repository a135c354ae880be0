"""`loraft init`, `loraft schema` and `loraft doctor`: what helps before the first run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import typer

from loraft.cli.console import print_either, print_json, print_note, waiting
from loraft.cli.launch_files import Launcher, LaunchFile
from loraft.cli.options import JsonOption, RowOptions, argument, flag, option, refuse
from loraft.cli.text_tables import document, print_document, print_next
from loraft.config.choices import DEFAULT_TASK, Method, TaskName

DEFAULT_METHOD: Method = "lora"
Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class StartOptions:
    """What a first config says."""

    path: str = argument("PATH", "The YAML file to write.")
    data: str | None = option(
        "DATA",
        "The rows: a file, a folder, a pattern, an address, - for standard input, a Hub dataset, or builtin:tickets.",
    )
    task: TaskName | None = option(None, "What is learned [default: what the rows are for].")
    method: Method | None = option(None, "How it is learned [default: lora].")
    model: str | None = option("MODEL", "The base model [default: a small one].")
    overwrite: bool = flag("Replace the file that is there.")
    launcher: Launcher | None = option(
        None, "Write a file for this scheduler beside PATH, which is kept where it is there."
    )
    num_processes: int | None = option("N", "With --launcher: the GPUs of a machine [default: 8].", min=1)
    num_machines: int | None = option("M", "With --launcher: how many machines [default: 1].", min=1)

    @property
    def asks(self) -> bool:
        """Whether something of the config is asked for."""
        return any(each is not None for each in (self.data, self.task, self.method, self.model))

    @property
    def launch_file(self) -> LaunchFile | None:
        """The file for a scheduler, where one is asked for."""
        if self.launcher is None:
            refuse(
                (self.num_processes is not None, "--num-processes is about --launcher, and there is none."),
                (self.num_machines is not None, "--num-machines is about --launcher, and there is none."),
            )
            return None
        return LaunchFile(Path(self.path), self.launcher, self.num_processes or 8, self.num_machines or 1)


def init(given: StartOptions, rows: RowOptions, as_json: JsonOption = False) -> None:
    """Write a commented config to start with.

    Looks at the rows, and proposes task, format, lengths and classes by what they hold. What no option says is asked
    on a terminal; elsewhere the proposal is taken. `loraft check` passes what is written.
    """
    launch_file, data = given.launch_file, rows.source(given.data)
    if launch_file is not None:
        launch_file.check(overwrite=given.overwrite)
        if launch_file.config.exists() and not given.overwrite:
            refuse((given.asks, f"{given.path} is there and is kept as it is: leave out what a new one would say."))
            wrote = {"launch_file": str(launch_file.write())}
            print_either(wrote, document(wrote, rest="written"), as_json=as_json)
            return
    path, task, method, model = Path(given.path), given.task, given.method, given.model
    with waiting("looking at the rows"):
        from loraft.dataset.dataset_profile import profile_dataset
        from loraft.inspection.first_config import check_place, start, tasks_of_model
        from loraft.tasks import TASKS
    if _on_a_terminal():
        with waiting("looking at the rows"):  # before anything is asked that they could make needless
            check_place(path, data, overwrite=given.overwrite)
            likely = tasks_of_model(model) if task is None else (task,)
            found = profile_dataset(data, tasks=likely) if data else None
        proposed = found.fit.task if found is not None else next(iter(likely), DEFAULT_TASK)
        task = proposed if likely else _asked("task", get_args(TaskName), proposed)
        method = method or _asked("method", get_args(Method), DEFAULT_METHOD)
        model = model or str(typer.prompt("model", default=TASKS[task].starter_model, err=True))
    with waiting("writing the config"):
        written = start(
            path,
            task=task,
            method=method or DEFAULT_METHOD,
            model=model,
            data=data,
            overwrite=given.overwrite,
        )
        if launch_file is not None:
            written["launch_file"] = str(launch_file.write())
    print_note(*written["notes"])
    if as_json:
        print_json(written)
        return
    facts = {key: value for key, value in written.items() if key != "notes" and value not in ({}, None)}
    print_document(facts, rest="written")
    print_next(given.path)


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _asked(what: str, choices: Sequence[Choice], proposed: Choice) -> Choice:
    """One of the choices, asked until it is one."""
    while (said := typer.prompt(f"{what} ({', '.join(choices)})", default=proposed, err=True)) not in choices:
        typer.echo(f"{said!r} is none of them.", err=True)
    return choices[choices.index(said)]


def schema() -> None:
    """Print the JSON schema of the config, for editors.

    Save it as loraft.schema.json and begin a config with the line
    "# yaml-language-server: $schema=loraft.schema.json": the editor then completes keys and marks mistakes.
    """
    from loraft.config.schema import RunConfig

    draft = "https://json-schema.org/draft/2020-12/schema"
    print_json({"$schema": draft, **RunConfig.model_json_schema(), "title": "loraft config"})


def doctor(as_json: JsonOption = False) -> None:
    """Tell what this machine can do.

    Versions, devices, what of bitsandbytes works here (each tried for real), free disk, cache and Hub.
    """
    with waiting("trying what works here"):
        from loraft.inspection.environment import examine

        parts = examine()
    print_either(parts, document(parts, rest="machine"), as_json=as_json)

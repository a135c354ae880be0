"""`loraft train` and `loraft check`: from a config to a run, or to all that can be known before one."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from loraft.cli.next_command import try_it
from loraft.cli.options import ConfigArgument, JsonOption, OverridesArgument
from loraft.cli.read_config import read_config
from loraft.cli.runner import handle_errors
from loraft.cli.wording import with_options


@handle_errors
def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run that verifies.")
    ] = False,
    resume_anyway: Annotated[
        bool,
        typer.Option("--resume-anyway", help="Go on even where config, data or base differ from the checkpoint's."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model as the config says.

    Progress goes to standard error, the result to standard output. Ctrl-C saves the state; --resume goes on.
    """
    if overwrite and (resume or resume_anyway):
        raise typer.BadParameter("--overwrite begins anew and --resume goes on: choose one.")
    run_config = read_config(config, overrides)

    from loraft.cli.console import console_on, print_json, print_result, waiting
    from loraft.cli.text_tables import document
    from loraft.cli.views.progress import view_on

    with waiting("loading libraries"):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        result = api.train(
            run_config,
            name=_run_name(config),
            resume=resume or resume_anyway,
            resume_anyway=resume_anyway,
            overwrite=overwrite,
            observer=view,
            command=["loraft", *sys.argv[1:]],
        )
    if as_json:
        print_json(result.as_dict())
    else:
        from loraft.tasks import TASKS

        print_result(*document(TASKS[run_config.task].summary_of_result(result.as_dict()), rest="run"))
        print_result(f"Try it:  {try_it(run_config.task, str(result.run_folder))}")


@handle_errors
def check(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Name each row that stands in the data twice, with file and line.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell everything that can be known before training.

    Config, files, rows, model, adapter targets, memory and steps, without loading a weight. Exit code 2 with every
    problem found, where training would be refused.
    """
    run_config = read_config(config, overrides)

    from loraft.cli.console import print_json, print_note, print_result, waiting
    from loraft.cli.text_tables import document

    with waiting("loading libraries, then model and rows"):
        from loraft import api

        report = api.check(run_config, name=_run_name(config), verbose=verbose)
    for note in report.notes:
        print_note(note)
    if as_json:
        print_json(with_options(report.as_dict(), "notes"))
    else:
        shown = _without_notes(report.as_dict())
        print_result(*document(_of_all_weights(shown) if run_config.method == "full" else shown, rest="run"))


def _without_notes(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what was told before it."""
    shown = {key: part for key, part in report.items() if key != "notes"}
    for source in shown.get("data", {}).get("sources", ()):
        source.pop("findings", None)
    return shown


def _of_all_weights(report: dict[str, Any]) -> dict[str, Any]:
    """A report of a run without an adapter, which has no part of that name."""
    named = {"trained" if part == "adapter" else part: facts for part, facts in report.items()}
    return {**named, "memory": {part: size for part, size in report["memory"].items() if part != "adapter"}}


def _run_name(path: str) -> str:
    return Path(path).stem

"""`loraft train` and `loraft check`: from a config to a run, or to all that can be known before one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from loraft.cli.console import print_json, print_note, waiting
from loraft.cli.options import ConfigOptions, JsonOption, flag, refuse
from loraft.cli.text_tables import print_document, print_try_it
from loraft.cli.views.progress import watching
from loraft.cli.wording import with_options


@dataclass(frozen=True)
class BeginningOptions:
    """Where a run begins."""

    resume: bool = flag("Go on from the newest checkpoint of the run that verifies.")
    resume_anyway: bool = flag("Go on even where config, data or base differ from the checkpoint's.")
    overwrite: bool = flag("Replace the run that the folder holds.")


def train(given: ConfigOptions, begin: BeginningOptions, as_json: JsonOption = False) -> None:
    """Fine-tune a model as the config says.

    Progress goes to standard error, the result to standard output. Ctrl-C saves the state; --resume goes on.
    """
    goes_on = begin.resume or begin.resume_anyway
    refuse((begin.overwrite and goes_on, "--overwrite begins anew and --resume goes on: choose one."))
    config = given.read()
    with waiting("loading libraries"):
        from loraft.api import train as fine_tune
        from loraft.tasks import TASKS

    with watching() as view:
        result = fine_tune(
            config,
            name=given.name,
            resume=goes_on,
            resume_anyway=begin.resume_anyway,
            overwrite=begin.overwrite,
            observer=view,
            command=["loraft", *sys.argv[1:]],
        )
    if as_json:
        print_json(result.as_dict())
    else:
        print_document(TASKS[config.task].summary_of_result(result.as_dict()), rest="run")
        print_try_it(config.task, str(result.run_folder))


@dataclass(frozen=True)
class CheckOptions:
    """How much is told."""

    verbose: bool = flag("Name each row that stands in the data twice, with file and line.")


def check(given: ConfigOptions, told: CheckOptions, as_json: JsonOption = False) -> None:
    """Tell everything that can be known before training.

    Config, files, rows, model, adapter targets, memory and steps, without loading a weight. Exit code 2 with every
    problem found, where training would be refused.
    """
    config = given.read()
    with waiting("loading libraries, then model and rows"):
        from loraft.api import check as look

        report = look(config, name=given.name, verbose=told.verbose)
    print_note(*report.notes)
    if as_json:
        print_json(with_options(report.as_dict(), "notes"))
    else:
        shown = _without_notes(report.as_dict())
        print_document(_of_all_weights(shown) if config.method == "full" else shown, rest="run")


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

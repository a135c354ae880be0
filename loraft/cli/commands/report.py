"""`loraft report`: whether a run did any good, as a page and in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraft.cli.console import print_json, print_note, print_result, waiting
from loraft.cli.options import JsonOption, argument, flag, option, refuse, trust_flag
from loraft.cli.views.progress import watching
from loraft.cli.views.report_view import report_view
from loraft.cli.wording import with_options


@dataclass(frozen=True)
class ReportOptions:
    """Which run is reported, and how much is asked of its model."""

    run_folder: str = argument("RUN", "The folder of a run, or of one of its checkpoints.")
    quick: bool = flag("Load no model: tell what the run wrote down.")
    data: str | None = option("FILE", "Rows to compare the model with its base on [default: those that it held out].")
    limit: int = option("N", "Read at most so many rows, evenly over all.", default=500, min=1)
    answers: int = option("N", "How many answers are shown before and after.", default=10, min=0)
    max_new_tokens: int = option("N", "The most tokens of an answer.", default=128, min=1)
    batch_size: int = option("N", "How many rows at a time: speed and memory alone.", default=8, min=1)
    output: Path | None = option("FILE", "The page [default: report.html in the run's folder].")
    trust_remote_code: bool = trust_flag()


def report(given: ReportOptions, as_json: JsonOption = False) -> None:
    """Tell whether a run did any good, and which key to change next.

    One page without scripts: the curves, where the run over-fitted, base beside trained on rows that were not learned,
    answers before and after, what was forgotten, rows with the highest loss, the layers that changed most, and which
    key of the config to change next. `loraft train` writes the page at its end with what needs no model.
    """
    refuse((given.quick and given.data is not None, "--quick asks no model: leave --data out."))
    with waiting("loading libraries"):
        from loraft.api import report as look

    with watching() as view:
        found = look(
            given.run_folder,
            output=given.output,
            quick=given.quick,
            data=given.data,
            limit=given.limit,
            answers=given.answers,
            max_new_tokens=given.max_new_tokens,
            batch_size=given.batch_size,
            trust_remote_code=given.trust_remote_code,
            observer=view,
        )
    page = given.output or Path(found.run) / "report.html"
    if as_json:
        print_json({**with_options(found.as_dict(), "notes"), "page": str(page)})
    else:
        print_note(*found.notes)
        print_result(*report_view(found, page))

"""`loraft tour`: how a transformer generates and is fine-tuned, shown by the commands themselves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from loraft.cli.console import print_message, print_result, waiting
from loraft.cli.options import argument, flag, refuse
from loraft.cli.views.tour_view import command_view, fact_view, heading, idea_view, output_view, parts_view
from loraft.errors import RunError
from loraft.io.paths import cache_folder, made_cache_folder
from loraft.tour import PARTS
from loraft.tour.screens import Part, Screen, Shown


@dataclass(frozen=True)
class TourOptions:
    """What is shown of the tour."""

    part: int | None = argument("PART", "The number of a part; none lists the parts.", default=None)
    all_parts: bool = flag("Show every part, one after another.", "--all")
    no_pause: bool = flag("Do not wait for Enter between screens.")


def tour(given: TourOptions) -> None:
    """Show how a transformer generates and is fine-tuned.

    In parts of a few screens: an idea, the commands that show it with what they print, and what is commonly said
    beside what is so and what was just measured. The models are those that come with loraft, and a tiny one with random
    weights where none does. Without a PART it lists the parts.
    """
    refuse((given.all_parts and given.part is not None, "--all shows every part: leave PART out."))
    known = ", ".join(map(str, PARTS))
    refuse((given.part is not None and given.part not in PARTS, f"There is no part {given.part}: they are {known}."))
    folder = cache_folder().absolute() / "tour"
    if given.part is None and not given.all_parts:
        print_result(*parts_view(PARTS, _from_home(folder)))
        return
    chosen = {number: PARTS[number] for number in ([given.part] if given.part is not None else PARTS)}
    with waiting("writing the files of the tour"):
        from loraft.tour.example_files import write_examples

        made_cache_folder()
        write_examples(folder)
    runs = CommandRuns(folder)
    pauses = not given.no_pause and sys.stdin.isatty() and sys.stdout.isatty()
    print_result(f"To type the commands yourself:  cd {shlex.quote(str(folder))}\n")
    first = True
    for number, part, index in _screens(chosen):
        if not first and pauses and not _goes_on():
            return
        first = False
        print_result(heading(number, part, index))
        _show(part.screens[index], runs)


def _screens(parts: dict[int, Part]) -> Iterator[tuple[int, Part, int]]:
    for number, part in parts.items():
        for index in range(len(part.screens)):
            yield number, part, index


def _show(screen: Screen, runs: CommandRuns) -> None:
    print_result(idea_view(screen.idea))
    documents = []
    for shown in screen.commands:
        again = shown in runs.shown
        print_result(command_view(shown, again=again))
        documents.append(runs.document(shown))
        if not again:
            print_result(*output_view(shown, documents[-1]))
    for fact in screen.facts:
        print_result(fact_view(fact, documents))


def _goes_on() -> bool:
    """Wait for Enter; False where the terminal has no more to say."""
    print_message("Enter goes on, Ctrl-C ends.")
    return bool(sys.stdin.readline())


def _from_home(folder: Path) -> str:
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


class CommandRuns:
    """Runs commands of loraft in this process, in the folder of the tour; each once, however often it is shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: set[Shown] = set()
        self._documents: dict[str, Any] = {}

    def document(self, shown: Shown) -> Any:
        """What the command prints with `--json`.

        Raises:
            RunError: It failed, or was refused and should not have been.
            typer.Exit: A signal ended it.
        """
        if shown.words not in self._documents:
            self._documents[shown.words] = self._run(shown)
        self.shown.add(shown)
        return self._documents[shown.words]

    def _run(self, shown: Shown) -> Any:
        from loraft.cli.app import app

        out, err = io.StringIO(), io.StringIO()
        program, before = typer.main.get_command(app), os.environ.get("LORAFT_CACHE")
        os.environ["LORAFT_CACHE"] = str(self.folder.parent)  # it may be relative to the folder that we leave
        try:
            with (
                waiting("running it"),
                contextlib.chdir(self.folder),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                words = [*shlex.split(shown.words), "--json"]
                code = program.main(words, prog_name="loraft", standalone_mode=False) or 0
        finally:
            if before is None:
                del os.environ["LORAFT_CACHE"]
            else:
                os.environ["LORAFT_CACHE"] = before
        if code > 128:
            raise typer.Exit(code)
        if code != (2 if shown.refused else 0):
            raise RunError(f"loraft {shown.words} ended with {code}:\n{err.getvalue().strip()}")
        return json.loads(out.getvalue())

"""A run as it is drawn, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from loraft.cli.console import LenientConsole
from loraft.cli.views.progress import LiveView, PlainView, live_line, view_on
from loraft.events import Event, Note, Progress
from loraft.training.run_events import SampleAnswered, Saved, StepDone, StepLogged
from tests.cli.conftest import Trained


class Gone(io.StringIO):
    """A stream whose reader has gone away."""

    def write(self, _: str, /) -> int:
        raise BrokenPipeError


def terminal(width: int = 80, file: io.StringIO | None = None) -> Console:
    return LenientConsole(file=file or io.StringIO(), force_terminal=True, width=width, markup=False, highlight=False)


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue().replace("\x1b[2K", "\n")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", drawn).splitlines()


def test_a_terminal_gets_the_live_view_and_a_file_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert type(view_on(terminal())) is LiveView
    assert type(view_on(Console(file=io.StringIO()))) is PlainView
    monkeypatch.setenv("TERM", "dumb")
    assert type(view_on(terminal())) is PlainView


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_the_live_line_is_never_wider_than_the_terminal(width: int) -> None:
    step = StepDone(123_456, 1_000_000, 12.3, 12.3456, 1.23e-4, 123_456.7, 79_000_000_000, 1_000_000.0)
    for event in (step, Progress("rows made into tokens", 12_345, 100_000), Progress("nothing", 0, 0)):
        assert live_line(event, width).cell_len <= width


def events_of(run: Trained) -> list[Event]:
    """What a run told, with the progress of a longer one before it."""
    return [*(Progress("rows made into tokens", done, 800) for done in range(0, 801, 100)), *run.events]


def test_columns_stand_under_their_titles_in_eighty_characters(trained: Trained) -> None:
    console = terminal()
    with LiveView(console) as view:
        for event in events_of(trained):
            view(event)
    lines = lines_of(console)
    title = next(line for line in lines if "grad norm" in line)
    rows = [line for line in lines if re.match(r" +\d+ +\d+\.\d\d +\d\.\d{4} +\d+\.\d{4}", line)]
    assert len(rows) == sum(isinstance(event, StepLogged) for event in trained.events) == 30
    assert {len(row) for row in rows} == {len(title)}
    assert all(len(line) <= 80 for line in lines)


def test_a_note_is_broken_between_words_on_a_terminal_and_nowhere_else() -> None:
    note = "device cpu (Intel Xeon), dtype bfloat16, which this CPU multiplies natively"
    console = terminal()
    with LiveView(console) as view:
        view(Note(note))
    assert [line.strip() for line in lines_of(console) if line.strip()] == [f"note: {note[:-9]}".strip(), "natively"]
    console = Console(file=io.StringIO(), width=80)
    PlainView(console)(Note(note))
    assert lines_of(console) == [f"note: {note}"]


@pytest.mark.parametrize("view_of", [PlainView, LiveView])
def test_a_view_without_a_reader_never_stops_a_run(view_of: type[PlainView], trained: Trained) -> None:
    console = terminal(file=Gone())
    with view_of(console) as view:
        for event in events_of(trained):
            view(event)


def test_what_a_model_says_moves_no_cursor_and_is_no_markup() -> None:
    file = io.StringIO()
    view = PlainView(Console(file=file, markup=False, highlight=False))
    view(SampleAnswered(5, "a\nprompt " + "x" * 200, "[red]\x1b[2J\x07 answer"))
    view(SampleAnswered(6, "quiet?", ""))
    view(Saved(6, Path("[bold]")))
    asked, answered, _, empty, saved = file.getvalue().splitlines()
    assert asked.startswith("sample at step 5: a prompt x")
    assert asked.endswith("x…")
    assert answered == "  [red]␛[2J␇ answer"
    assert empty == "  (an empty answer)"
    assert saved == "saved [bold]"

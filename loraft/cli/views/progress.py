"""A run as it goes on, drawn on standard error: columns with a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loraft import api
from loraft.cli.console import console_on, forget, printable, waiting
from loraft.cli.text_tables import as_bytes, as_count, as_duration, as_figure, as_measure, as_rate, as_share, label
from loraft.cli.wording import in_options
from loraft.events import Event, Note, Progress
from loraft.figures import counted
from loraft.training.run_events import Evaluated, RunStarted, SampleAnswered, Saved, StepDone, StepLogged, StepSkipped

SECONDS_BETWEEN_FRAMES = 0.1
SECONDS_BETWEEN_PLAIN_PROGRESS = 10.0
BAR_WIDTHS = range(10, 31)
PROMPT_WIDTH = 100


class PlainView:
    """An observer that is open while work goes on; one line an event, for files and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left open."""

    def __call__(self, event: Event) -> None:
        """Draws what `event` tells, if it is worth a line."""
        with self._read_or_not():
            self._draw(event)

    @contextmanager
    def _read_or_not(self) -> Iterator[None]:
        """A reader who has gone away stops no run."""
        try:
            yield
        except OSError:
            forget(self._console.file)

    def _draw(self, event: Event) -> None:
        line = _told(event)
        if isinstance(event, StepLogged):
            line = _plain_step(event)
        elif isinstance(event, Evaluated):
            line = Text(f"evaluation at step {event.step}: loss {as_measure(event.loss)}, {_verdict(event, ', ')}")
        elif isinstance(event, Progress) and self._is_time(SECONDS_BETWEEN_PLAIN_PROGRESS):
            line = Text(f"{event.what}: {as_count(event.done)} of {as_count(event.total)}")
        if line is not None:
            self._console.print(line, soft_wrap=True)

    def _is_time(self, seconds: float) -> bool:
        """Whether so many seconds are over since this was last so."""
        if over := time.monotonic() - self._drawn_at >= seconds:
            self._drawn_at = time.monotonic()
        return over


class LiveView(PlainView):
    """Aligned columns, and below them one line that is drawn anew for steps and progress."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._drawn_at = 0.0
        self._has_header = False

    def __enter__(self) -> Self:
        with self._read_or_not():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._read_or_not():
            self._live.stop()
            if self._has_header:
                self._console.print()

    def _draw(self, event: Event) -> None:
        if isinstance(event, StepDone | Progress):
            if self._is_time(SECONDS_BETWEEN_FRAMES):
                self._live.update(live_line(event, self._console.width), refresh=True)
            return
        if isinstance(event, StepLogged | Evaluated) and not self._has_header:
            self._has_header = True
            header = _row("step", "epoch", "loss", "grad norm", "rate", "tokens/s", "peak", "left")
            self._console.print(header, style="dim")
        if isinstance(event, StepLogged):
            self._console.print(_columns(event))
        elif isinstance(event, Evaluated):
            start = _row(as_count(event.step), f"{event.epoch:.2f}", as_measure(event.loss))
            style = "green" if event.best else ""
            self._console.print(Text.assemble((start, "bold"), ("  eval · " + _verdict(event, " · "), style)))
        elif (text := _told(event)) is not None:
            self._console.print(text, soft_wrap=not isinstance(event, Note | StepSkipped))


def view_on(console: Console) -> PlainView:
    """The live view where `console` is a terminal that can move its cursor, else the plain one."""
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(console)


@contextmanager
def watching(verb: str) -> Iterator[PlainView]:
    """A view on standard error, once what a verb of the API needs is loaded; what libraries print goes there too."""
    with waiting("loading libraries"):
        getattr(api, verb)
    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        yield view


def live_line(event: StepDone | Progress, width: int) -> Text:
    """One line of at most `width` characters: how far, a bar, and the figures that fit, the first ones first."""
    if isinstance(event, Progress):
        done, total, figures = event.done, event.total, [event.what]
    else:
        done, total = event.step, event.steps
        left = f"{as_duration(event.seconds_left)} left"
        speed = f"{as_count(round(event.tokens_per_second))} tokens/s"
        rate = f"rate {as_rate(event.learning_rate)}"
        figures = [f"loss {as_measure(event.loss)}", left, speed, as_bytes(event.peak_bytes), rate]
    count = f"{done}/{total}"
    room = width - len(count) - 3 - BAR_WIDTHS.start
    while figures and sum(len(figure) + 2 for figure in figures) > room:
        figures.pop()
    tail = "".join(f"  {figure}" for figure in figures)
    bar_width = max(BAR_WIDTHS.start, min(BAR_WIDTHS.stop - 1, width - len(count) - len(tail) - 2))
    filled = round(bar_width * done / total) if total else bar_width
    return Text.assemble(
        (count, "bold"), " ", ("━" * filled, "green"), ("━" * (bar_width - filled), "bright_black"), tail
    )


def _row(*cells: str) -> str:
    widths = (7, 7, 9, 10, 9, 9, 8, 8)
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))


def _columns(event: StepLogged) -> str:
    of_routers = "" if event.router_aux_loss is None else f"  routers {as_measure(event.router_aux_loss)}"
    row = _row(
        as_count(event.step),
        f"{event.epoch:.2f}",
        as_measure(event.loss),
        as_measure(event.grad_norm),
        as_rate(event.learning_rate),
        as_count(round(event.tokens_per_second)),
        as_bytes(event.peak_bytes),
        as_duration(event.seconds_left),
    )
    return row + of_routers


def _plain_step(event: StepLogged) -> Text:
    of_routers = "" if event.router_aux_loss is None else f"  routers {as_measure(event.router_aux_loss)}"
    return Text(
        f"step {event.step:>{len(str(event.steps))}}/{event.steps}  epoch {event.epoch:.2f}"
        f"  loss {as_measure(event.loss)}{of_routers}  grad norm {as_measure(event.grad_norm)}"
        f"  rate {as_rate(event.learning_rate)}  {as_count(round(event.tokens_per_second))} tokens/s"
        f"  peak {as_bytes(event.peak_bytes)}  {as_duration(event.seconds_left)} left"
    )


def _verdict(event: Evaluated, separator: str) -> str:
    figures = event.figures or {"perplexity": event.perplexity}
    words = [f"{label(name)} {as_figure(name, value)}" for name, value in figures.items()]
    words.append(counted(event.rows, "row"))
    return separator.join([*words, "best so far"] if event.best else words)


def _told(event: Event) -> Text | None:
    """What reads the same on a terminal and in a file; None for what only a live line shows."""
    match event:
        case Note(text):
            return Text.assemble(("note: ", "cyan"), printable(in_options(text)))
        case StepSkipped(_, _, skipped, reason):
            so_far = f"; the step is left out, {counted(skipped, 'step')} so far"
            return Text.assemble(("warning: ", "yellow"), printable(in_options(reason + so_far)))
        case RunStarted():
            return _beginning(event)
        case SampleAnswered(step, prompt, answer):
            asked = " ".join(printable(prompt).split())
            asked = asked if len(asked) <= PROMPT_WIDTH else f"{asked[: PROMPT_WIDTH - 1]}…"
            answered = printable(answer).strip().replace("\n", "\n  ")
            return Text.assemble((f"sample at step {step}: {asked}", "dim"), "\n  ", answered or "(an empty answer)")
        case Saved(_, folder):
            return Text(f"saved {folder}", style="dim")
    return None


def _beginning(event: RunStarted) -> Text:
    passes = "1 epoch" if event.epochs == 1 else f"{as_count(round(event.epochs, 2))} epochs"
    since = f", from step {as_count(event.step)} on" if event.step else ""
    share = as_share(event.trainable_parameters, event.total_parameters)
    return Text.assemble(
        ("run      ", "dim"),
        (str(event.run_folder), "bold"),
        ("\nsteps    ", "dim"),
        f"{as_count(event.steps)} ({passes}{since})",
        ("\ntrained  ", "dim"),
        f"{as_count(event.trainable_parameters)} of {as_count(event.total_parameters)} parameters ({share})\n",
    )

"""Numbers as a person reads them, and documents as tables: what `--json` prints for machines, laid out for people."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loraft.cli.console import print_result, printable
from loraft.cli.wording import in_options
from loraft.config.choices import TaskName

Document = Mapping[str, Any]
"""What a command prints with `--json`, or a part of it."""
NUMBERS = ">"
"""Begins the heading of a column of numbers, which stand to the right."""

UNBOUNDED = 10_000
"""Columns that no table needs."""
MOST_ITEMS = 8
BAR_WIDTH = 30
IN_BYTES = ("memory",)
"""The sections whose every number counts bytes."""


def shown(key: str, value: object) -> str:
    """A fact's value in words; its key tells the unit: `peak_bytes`, `trained_share`, `learning_rate`."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(key, value)
    if isinstance(value, Mapping):
        keys = {name: name if name.endswith(("bytes", "share", "rate")) else key for name in value}
        return " · ".join(f"{label(name)} {shown(keys[name], item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _items(key, value)
    return printable(str(value))


def label(key: str) -> str:
    """A key as a person says it: `trainable_parameters` is `trainable parameters`, `peak_bytes` is `peak`."""
    return key.removesuffix("_bytes").removesuffix("_share").replace("_", " ")


def facts(title: str, rows: Document, *, label_width: int = 0) -> RenderableType:
    """A titled grid, a row for each fact."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", min_width=label_width, no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in rows.items():
        if title in IN_BYTES:
            whole = None if key.startswith("host_") else rows.get("peak_bytes")
            grid.add_row(f"  {label(key)}", shown(f"{key}_bytes", value), _bar(value, whole))
        else:
            grid.add_row(f"  {label(key)}", shown(key, value))
    return titled(title, grid)


def records(title: str, rows: Sequence[Document]) -> RenderableType:
    """A titled table, a row for each record; the columns are those of all records, numbers to the right."""
    keys = dict.fromkeys(key for row in rows for key in row)
    numbers = {key for key in keys if all(isinstance(row.get(key), int | float | None) for row in rows)}
    headings = [NUMBERS * (key in numbers) + label(key) for key in keys]
    return text_table(title, headings, ([shown(key, row.get(key)) for key in keys] for row in rows))


def text_table(title: str, headings: Iterable[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """A titled table of words; a heading that begins with `>` has numbers below it, which stand to the right."""
    return titled(title, _WordsKeptWhole(list(headings), [[printable(cell) for cell in row] for row in rows]), indent=1)


def figures_beside(
    title: str, first: str, second: str, rows: Iterable[tuple[str, float, float, float, float, float]]
) -> RenderableType:
    """A table of what two models come to: each figure of both, the difference, and the ends of its 95 % interval."""
    shown_rows = []
    for name, *figures, difference, low, high in rows:
        apart, *ends = (as_figure(name, each, signed=True) for each in (difference, low, high))
        both = (as_figure(name, each) for each in figures)
        shown_rows.append([label(name), *both, apart, " to ".join(ends)])
    headings = ("", f">{first}", f">{second}", ">difference", ">95 % interval")
    return text_table(title, headings, shown_rows)


@dataclass(frozen=True)
class _WordsKeptWhole:
    """A table whose numbers and names are not broken while there is anything else to break."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def _table(self, *, breaks_words: bool) -> Table:
        table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=True, show_edge=False)
        for heading, *cells in zip(self.headings, *self.rows, strict=True):
            name = heading.removeprefix(NUMBERS)
            whole = not breaks_words and (name != heading or not any(" " in cell for cell in cells))
            table.add_column(name, justify="left" if name == heading else "right", overflow="fold", no_wrap=whole)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = self._table(breaks_words=False)
        fits = Measurement.get(console, options.update(max_width=UNBOUNDED), whole).minimum <= options.max_width
        yield whole if fits else self._table(breaks_words=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._table(breaks_words=True))


def print_try_it(task: TaskName, target: str, saved: Path) -> None:
    """The command that lets `target`, whose files are `saved`, do what it was trained for: what one would type next."""
    from loraft.adapters.metadata import metadata_in
    from loraft.tasks import TASKS

    print_result("Try it:  " + in_options(f"`{TASKS[task].try_call(target, metadata_in(saved))}`"))


def print_next(config: str) -> None:
    """The commands that one would type next with a config that was written."""
    name = shlex.quote(config)
    print_result(f"Next:  loraft preview {name}\n       loraft check {name}\n       loraft train {name}")


def print_document(sections: Document, *, rest: str) -> None:
    """The document on standard output."""
    print_result(*document(sections, rest=rest))


def document(sections: Document, *, rest: str) -> Iterator[RenderableType]:
    """Each mapping a titled section, each list of mappings a table, and what else there is under the title `rest`."""
    flat = {key: value for key, value in sections.items() if not isinstance(value, Mapping) and not _is_records(value)}
    whole = {key: value for key, value in sections.items() if key not in flat}
    if flat:
        whole[rest] = flat
    keys = [key for part in whole.values() if isinstance(part, Mapping) for key in part]
    width = 2 + max((len(label(key)) for key in keys), default=0)
    for title, part in whole.items():
        if isinstance(part, Mapping):
            yield from _section(title, part, width)
        else:
            yield records(label(title), part)


def _section(title: str, part: Document, width: int) -> Iterator[RenderableType]:
    inner = {key: value for key, value in part.items() if _is_records(value)}
    yield facts(label(title), {key: value for key, value in part.items() if key not in inner}, label_width=width)
    for key, rows in inner.items():
        yield records(f"{label(title)}: {label(key)}", rows)


def titled(title: str, body: RenderableType, *, indent: int = 0) -> RenderableType:
    """A body below its title, and an empty line below it."""
    frame = Table.grid()
    frame.add_row(Text(title, style="bold"))
    frame.add_row(Padding(body, (0, 0, 1, indent)))
    return frame


def _bar(part: object, whole: object) -> Text:
    """A part of the peak; nothing for what is not a part of it."""
    if not isinstance(part, int) or not isinstance(whole, int) or not 0 < part < whole:
        return Text()
    return Text(bar(part, whole, BAR_WIDTH), style="green")


def bar(part: float | None, whole: float, width: int = 16) -> str:
    """As much of `width` as the part is of the whole; nothing for none, and for what is not finite."""
    share = part / whole if part and whole else 0.0
    return "━" * max(1, round(width * share)) if share and math.isfinite(share) else ""


def _is_records(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _number(key: str, value: float) -> str:
    if key.endswith("bytes"):
        return as_bytes(value)
    if key.endswith("share"):
        return f"{100 * value:.2f} %"
    if key.endswith("seconds"):
        return as_duration(value)
    if key.endswith("learning_rate"):
        return as_rate(value)
    if key.endswith("norm"):
        return as_measure(value)
    from loraft.tasks import METRIC_FACTS

    figure = key.removeprefix("best_").removeprefix("eval_")
    return as_figure(figure, value) if figure in METRIC_FACTS else as_count(value)


def _items(key: str, items: Sequence[object]) -> str:
    if len(items) > 2 and list(items) == list(range(len(items))):
        return f"0 to {len(items) - 1}"
    words = [shown(key, item) for item in items[:MOST_ITEMS]]
    words += [f"… {len(items) - MOST_ITEMS} more"] * (len(items) > MOST_ITEMS)
    return ", ".join(words) or "–"


def as_bytes(number: float) -> str:
    """Decimal units with two or three figures: `812 MB`, `2.1 GB`."""
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5:
            break
        size, unit = size / 1000, larger
    figures = f"{size:.1f}" if unit != "B" and abs(size) < 9.95 else f"{size:.0f}"
    return f"{figures} {unit}"


def as_count(number: float) -> str:
    """Whole numbers in groups of three: `4,884,480`; others as they are: `2.5`."""
    return f"{int(number):,}" if math.isfinite(number) and number == int(number) else f"{number:,g}"


def cut_answers(cut: int, by_positions: int) -> str:
    """How many answers were cut, and by what: `3 at the limit (--max-new-tokens)`; `0` where none was."""
    by = {"at the limit (--max-new-tokens)": cut - by_positions, "where the model's positions end": by_positions}
    return ", ".join(f"{count:,} {where}" for where, count in by.items() if count) or "0"


def as_duration(seconds: float) -> str:
    """The two largest units: `42s`, `4m12s`, `3h05m`, `2d04h`."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def as_measure(number: float | None) -> str:
    """A loss, a norm or a perplexity: four decimals while small, five figures when large; – for none."""
    if number is None:
        return "–"
    if not math.isfinite(number):
        return str(number)
    if number != 0 and abs(number) < 0.001:
        return f"{number:.1e}"
    return f"{number:.4f}" if abs(number) < 100 else f"{number:,.1f}"


def as_figure(name: str, value: float, *, signed: bool = False) -> str:
    """A figure as its metric says: a loss with four decimals, BLEU and chrF from 0 to 100, shares in per cent."""
    from loraft.tasks import METRIC_FACTS

    if not math.isfinite(value):
        return "–"
    sign = "+" if signed and value > 0 else ""
    match METRIC_FACTS[name].look:
        case "number":
            return f"{sign}{as_measure(value)}"
        case "points":
            return f"{sign}{value:.2f}"
        case "share":
            return f"{sign}{100 * value:.2f} %"


def as_rate(learning_rate: float) -> str:
    """A learning rate: `2.00e-4`, without the zeros of the exponent."""
    if learning_rate == 0:
        return "0"
    mantissa, exponent = f"{learning_rate:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def as_share(part: float | None, whole: float = 1) -> str:
    """A part in per cent of the whole, with enough decimals to tell it from nothing: `3.50 %`; – for none."""
    if part is None:
        return "–"
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.3f} %" if 0 < percent < 0.1 else f"{percent:.2f} %" if percent < 10 else f"{percent:.1f} %"


def layer_name(row: Document, *, with_stack: bool = True) -> str:
    """A layer's number, with its stack where there are several."""
    return f"{row['stack']} {row['index']}" if with_stack else str(row["index"])


def as_span(indices: Sequence[int]) -> str:
    """Whole numbers in ascending order, unbroken runs by their ends: `0–29`, `0, 3–5`."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in ends)

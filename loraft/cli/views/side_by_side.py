"""Answers of several voices to one prompt, beside one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loraft.cli.console import printable
from loraft.cli.formatting import as_count

if TYPE_CHECKING:
    from loraft.inference.compare_adapters import AdapterComparison
    from loraft.inference.completion import Completion

MOST_COLUMNS = 4
"""Voices beside one another; more stand below one another."""
ENDS = {"stop": "ended", "length": "cut"}


def side_by_side(compared: AdapterComparison) -> RenderableType:
    """A prompt, and below it a column for each voice, or a row for each where there are many."""
    prompt = Text(printable(compared.prompt), style="bold")
    answers = compared.completions
    if len(answers) > MOST_COLUMNS:
        table = Table(box=box.SIMPLE, show_header=False, show_lines=True, padding=(0, 1))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold", ratio=1)
        for name, completion in answers.items():
            table.add_row(name, _answer(completion))
    else:
        table = Table(box=box.SIMPLE_HEAD, expand=True, header_style="cyan", padding=(0, 1))
        for name in answers:
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*map(_answer, answers.values()))
    return Group(prompt, table)


def _answer(completion: Completion) -> Text:
    tokens = len(completion.token_ids)
    how = f"{as_count(tokens)} token{'' if tokens == 1 else 's'}, {ENDS[completion.finish_reason]}"
    text = printable(completion.completion.strip()) or "(an empty answer)"
    return Text.assemble(text, "\n", (how, "dim"))

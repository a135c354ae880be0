"""`loraft generate` for many prompts: several at once, a file of them, or several voices beside one another."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loraft.cli.console import print_json, print_result, printable, waiting
from loraft.cli.options import flag, option, refuse
from loraft.cli.text_tables import as_count, print_document
from loraft.cli.views.progress import watching
from loraft.inference.requests import GenerationRequest, ModelRequest

if TYPE_CHECKING:
    from loraft.inference.compare_adapters import AdapterComparison
    from loraft.inference.completion import Completion

LOADING = "loading libraries"
MOST_COLUMNS = 4
"""Voices beside one another; more stand below one another."""
ENDS = {"stop": "ended", "length": "cut"}


@dataclass(frozen=True)
class PromptOptions:
    """What is to be answered, and where the answers go."""

    prompt: list[str] | None = option("TEXT", "A prompt; - reads standard input. May be repeated.", "--prompt", "-p")
    prompts: Path | None = option(
        "FILE", "Rows with prompt, messages, source or translation: JSONL, JSON, CSV, Parquet.", "--input"
    )
    output: Path | None = option(
        "FILE", "Where each row of --input is written with its completion; the same command goes on with it."
    )
    overwrite: bool = flag("Begin anew, whatever the output holds.")
    prompt_column: str | None = option("NAME", "What --input calls prompt.")
    batch_size: int = option("N", "How many prompts at a time, where there are many.", default=8, min=1)
    compare: bool = flag("Let the base and every adapter answer, side by side.")

    def check(self, target: str | None) -> None:
        """Refuse options that contradict one another."""
        prompt, file, out = self.prompt or [], self.prompts is not None, self.output is not None
        unasked = f"{target!r} is TARGET, the model: give what it answers by --prompt or --input."
        refuse(
            (target is not None and not prompt and not file, unasked),
            (bool(prompt) == file, "Give either --prompt or --input."),
            (file != out, "--input and --output belong together."),
            (self.compare and file, "--compare answers each --prompt; it does not take --input."),
            (self.overwrite and not out, "--overwrite is about --output, and there is none."),
            (prompt.count("-") > 1, "Standard input is one prompt: give -p - once."),
            (self.prompt_column and not file, "--prompt-column is about --input, and there is none."),
        )


def answer_several(
    model: ModelRequest, options: GenerationRequest, prompts: Sequence[str], *, batch_size: int, as_json: bool
) -> None:
    """Each prompt with its answer on standard output, in the order of the prompts."""
    with waiting(LOADING):
        from loraft.api import complete

    with watching() as view:
        answers = complete(model, prompts=prompts, options=options, batch_size=batch_size, observer=view)
    if as_json:
        print_json([asdict(answer) for answer in answers])
        return
    shown = printable if sys.stdout.isatty() else str
    texts = (f"> {prompt}\n{answer.completion}\n" for prompt, answer in zip(prompts, answers, strict=True))
    sys.stdout.write(shown("\n".join(texts)))


def answer_file(model: ModelRequest, options: GenerationRequest, given: PromptOptions, *, as_json: bool) -> None:
    """The answers in a file, and on standard output what was done."""
    with waiting(LOADING):
        from loraft.api import answer_file as answer_rows

    assert given.prompts is not None
    assert given.output is not None
    with watching() as view:
        result = answer_rows(
            model,
            prompts=given.prompts,
            output=given.output,
            prompt_column=given.prompt_column,
            options=options,
            batch_size=given.batch_size,
            overwrite=given.overwrite,
            observer=view,
        )
    if as_json:
        print_json(result.as_dict())
    else:
        print_document(_summary(result.as_dict()), rest="answers")


def _summary(done: Mapping[str, object]) -> dict[str, object]:
    """What was done with a file, in words that need no legend."""
    told: dict[str, object] = {}
    for key, value in done.items():
        if key == "held":
            if value:
                told["there before"] = value
        elif key == "cut":
            told["answers cut"] = f"{value} at the limit (--max-new-tokens)" if value else value
        else:
            told["tokens of answers" if key == "tokens" else key] = value
    return told


def answer_compared(
    model: ModelRequest, options: GenerationRequest, prompts: Sequence[str], *, batch_size: int, as_json: bool
) -> None:
    """Each prompt with the answers of all voices beside one another."""
    with waiting(LOADING):
        from loraft.api import compare

    with watching() as view:
        compared = compare(model, prompts=prompts, options=options, batch_size=batch_size, observer=view)
    if as_json:
        documents = [asdict(each) for each in compared]
        print_json(documents if len(documents) > 1 else documents[0])
    else:
        print_result(*map(_side_by_side, compared))


def _side_by_side(compared: AdapterComparison) -> RenderableType:
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

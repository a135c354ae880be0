"""`loraft generate` for many prompts: several at once, a file of them, or several voices beside one another."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from loraft.inference.requests import GenerationRequest, ModelRequest

LOADING = "loading libraries"


@dataclass(frozen=True)
class Asked:
    """What answers, and how."""

    model: ModelRequest
    options: GenerationRequest


def answer_several(asked: Asked, prompts: Sequence[str], *, batch_size: int, as_json: bool) -> None:
    """Each prompt with its answer on standard output, in the order of the prompts."""
    from loraft.cli.console import console_on, print_json, printable, waiting
    from loraft.cli.views.progress import view_on

    with waiting(LOADING):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        answers = api.complete(
            asked.model,
            prompts=prompts,
            options=asked.options,
            batch_size=batch_size,
            observer=view,
        )
    if as_json:
        print_json([asdict(answer) for answer in answers])
        return
    shown = printable if sys.stdout.isatty() else str
    texts = (f"> {prompt}\n{answer.completion}\n" for prompt, answer in zip(prompts, answers, strict=True))
    sys.stdout.write(shown("\n".join(texts)))


def answer_file(
    asked: Asked,
    prompts: Path,
    output: Path,
    *,
    prompt_column: str | None,
    batch_size: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """The answers in a file, and on standard output what was done."""
    from loraft.cli.console import console_on, print_json, print_result, waiting
    from loraft.cli.text_tables import document
    from loraft.cli.views.progress import view_on

    with waiting(LOADING):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        result = api.answer_file(
            asked.model,
            prompts=prompts,
            output=output,
            prompt_column=prompt_column,
            options=asked.options,
            batch_size=batch_size,
            overwrite=overwrite,
            observer=view,
        )
    if as_json:
        print_json(result.as_dict())
    else:
        print_result(*document(_summary(result.as_dict()), rest="answers"))


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


def answer_compared(asked: Asked, prompts: Sequence[str], *, batch_size: int, as_json: bool) -> None:
    """Each prompt with the answers of all voices beside one another."""
    from loraft.cli.console import console_on, print_json, print_result, waiting
    from loraft.cli.views.progress import view_on
    from loraft.cli.views.side_by_side import side_by_side

    with waiting(LOADING):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        compared = api.compare(
            asked.model, prompts=prompts, options=asked.options, batch_size=batch_size, observer=view
        )
    if as_json:
        documents = [asdict(each) for each in compared]
        print_json(documents if len(documents) > 1 else documents[0])
    else:
        print_result(*map(side_by_side, compared))

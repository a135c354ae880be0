"""`loraft generate`: a prompt in, an answer out, token by token."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from loraft.cli.options import (
    AdaptersOption,
    BaseModelOption,
    JsonOption,
    MaxNewTokensOption,
    MergeOption,
    QuantizeOption,
    SamplingSeedOption,
    SystemOption,
    TargetArgument,
    TemperatureOption,
    TopKOption,
    TopPOption,
    quantization,
)
from loraft.cli.outcome import ends_well
from loraft.errors import Refused
from loraft.generation.options import AnswerOptions

if TYPE_CHECKING:
    from loraft.generation.engine import Completion

__all__ = ["generate"]

ENDS = {"stop": "the model ended its answer", "length": "cut at the limit (--max-new-tokens)"}


@ends_well
def generate(
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", metavar="TEXT", show_default=False, help="The prompt; - reads standard input."),
    ],
    target: TargetArgument = None,
    adapter: AdaptersOption = None,
    base_model: BaseModelOption = None,
    quantize: QuantizeOption = None,
    merge: MergeOption = False,
    system: SystemOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SamplingSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt with a base model, or with what was trained.

    The answer goes to standard output as it comes. Template, system prompt, stop tokens and sampling are those that
    were saved with the adapter, unless an option says otherwise.
    """
    if target is None and not adapter:
        raise typer.BadParameter("Name a TARGET, or an --adapter that brings its base.")
    text = _prompt_text(prompt)

    from loraft.cli.render import print_json, print_note, waiting

    answers = sys.stdout
    with waiting("loading libraries and model"):
        from loraft import api

        stream = api.generate(
            target,
            adapter or (),
            prompt=text,
            options=AnswerOptions(system, max_new_tokens, temperature, top_p, top_k, seed),
            base_model=base_model,
            quantize=quantization(quantize),
            merge=merge,
        )
    for note in stream.notes:
        print_note(note)
    with redirect_stdout(sys.stderr):
        pieces = (token.text for token in stream)
        if as_json:
            deque(pieces, maxlen=0)
        else:
            _write(pieces, answers)
    if as_json:
        print_json(asdict(stream.completion))
    else:
        _tell_speed(stream.completion)


def _prompt_text(prompt: str) -> str:
    """The prompt as text; `-` is all of standard input, without its last line end.

    Raises:
        Refused: It is not UTF-8.
    """
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        prompt.encode("utf-8")
    except UnicodeError as error:
        raise Refused("the prompt is not UTF-8 text", where="--prompt") from error
    return prompt


def _write(pieces: Iterable[str], answers: TextIO) -> None:
    """Writes each piece as it comes, and a line end even where it is cut short."""
    from loraft.cli.render import printable

    on_terminal = answers.isatty()
    try:
        for piece in pieces:
            answers.write(printable(piece) if on_terminal else piece)
            answers.flush()
    finally:
        answers.write("\n")
    answers.flush()


def _tell_speed(completion: Completion) -> None:
    from loraft.cli.figures import as_count
    from loraft.cli.render import say

    speed = f"prompt read in {completion.prefill_ms:.0f} ms"
    if completion.decode_tokens_per_second is not None:
        speed += f" · {completion.decode_tokens_per_second:.1f} tokens/s"
    say((f"{as_count(len(completion.token_ids))} tokens · {speed} · {ENDS[completion.finish_reason]}", "dim"))

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
    LayersOption,
    MaxNewTokensOption,
    MinPOption,
    NoCacheOption,
    NumBeamsOption,
    QuantizeOption,
    RepetitionPenaltyOption,
    SamplingSeedOption,
    StopOption,
    SystemOption,
    TargetArgument,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TraceOption,
    quantization,
)
from loraft.cli.outcome import ends_well
from loraft.errors import Refused
from loraft.generation.options import AnswerOptions

if TYPE_CHECKING:
    from loraft.api import Answering
    from loraft.generation.cache_comparison import CacheComparison, Speed
    from loraft.generation.engine import Completion

__all__ = ["generate"]

ENDS = {"stop": "the model ended its answer", "length": "cut at the limit (--max-new-tokens)"}
ENDS_WITH_STOP_TEXTS = {**ENDS, "stop": "ended by the model or at a stop text"}


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
    system: SystemOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    stop: StopOption = None,
    num_beams: NumBeamsOption = None,
    seed: SamplingSeedOption = 0,
    trace: TraceOption = False,
    layers: LayersOption = False,
    no_kv_cache: NoCacheOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt with a base model, or with what was trained.

    The answer goes to standard output as it comes. Template, system prompt, stop tokens and sampling are those that
    were saved with the adapter, unless an option says otherwise.
    """
    if target is None and not adapter:
        raise typer.BadParameter("Name a TARGET, or an --adapter that brings its base.")
    if layers and not trace:
        raise typer.BadParameter("--layers tells more of a --trace: give both.")
    text = _prompt_text(prompt)
    options = AnswerOptions(
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        num_beams=num_beams,
    )

    from loraft.cli.render import print_json, print_note, waiting

    answers = sys.stdout
    with waiting("loading libraries and model"):
        from loraft import api

        stream = api.generate(
            target,
            adapter or (),
            prompt=text,
            options=options,
            base_model=base_model,
            quantize=quantization(quantize),
            trace=trace,
            layers=layers,
            use_cache=not no_kv_cache,
        )
    for note in stream.notes:
        print_note(note)
    with redirect_stdout(sys.stderr):
        pieces = (token.text for token in stream)
        if as_json or trace:
            deque(pieces, maxlen=0)
        else:
            _write(pieces, answers)
    compared = _with_cache(stream)
    if as_json:
        print_json(_document(stream, compared))
        return
    if stream.trace is not None:
        from loraft.cli.render import print_result
        from loraft.cli.tracing import drawn_trace

        print_result(*drawn_trace(stream.trace, stream.completion))
    _tell_speed(stream.completion, may_be_cut_at_text=bool(stop))
    if compared is not None:
        _tell_comparison(compared)


def _with_cache(stream: Answering) -> CacheComparison | None:
    """The same answer again with a cache, where that is to be compared."""
    from loraft.cli.render import waiting

    if stream.with_cache is None:
        return None
    with waiting("the same answer, with the cache"):
        return stream.with_cache()


def _document(stream: Answering, compared: CacheComparison | None) -> dict[str, object]:
    document: dict[str, object] = asdict(stream.completion)
    if stream.trace is not None:
        document["trace"] = stream.trace.as_dict()
    if compared is not None:
        document["no_kv_cache"] = compared.as_dict()
    return document


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


def _tell_speed(completion: Completion, *, may_be_cut_at_text: bool) -> None:
    from loraft.cli.figures import as_count
    from loraft.cli.render import say

    speed = _speed(completion)
    ends = (ENDS_WITH_STOP_TEXTS if may_be_cut_at_text else ENDS)[completion.finish_reason]
    say((f"{as_count(len(completion.token_ids))} tokens · {speed} · {ends}", "dim"))


def _tell_comparison(compared: CacheComparison) -> None:
    """Both speeds, and the first difference."""
    from loraft.cli.render import say
    from loraft.cli.tracing import visible

    say(("without the KV cache ", "dim"), _speed(compared.without_cache))
    say(("with it              ", "dim"), _speed(compared.with_cache))
    if (apart := compared.first_difference) is None:
        say(("the same tokens both ways", "green"))
        return
    pieces = [
        visible(piece.text) if piece is not None else "(the end)" for piece in (apart.without_cache, apart.with_cache)
    ]
    say((f"the answers part at token {apart.index}: {pieces[0]} without the cache, {pieces[1]} with it", "yellow"))
    say(("  the two ways round differently, and likely tokens lie close together; in float32 they agree", "dim"))


def _speed(speed: Speed | Completion) -> str:
    rate = speed.decode_tokens_per_second
    return f"prompt read in {speed.prefill_ms:.0f} ms" + (f" · {rate:.1f} tokens/s" if rate is not None else "")

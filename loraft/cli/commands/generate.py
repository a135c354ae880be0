"""`loraft generate`: a prompt in, an answer out, token by token; or many prompts (`many.py`)."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from loraft.cli.commands.generate_batch import Asked, answer_compared, answer_file, answer_several
from loraft.cli.options import (
    AdaptersOption,
    BaseModelOption,
    DtypeOption,
    JsonOption,
    LayersOption,
    MaxNewTokensOption,
    MergeOption,
    MinPOption,
    NoCacheOption,
    NumBeamsOption,
    QuantizeOption,
    RepetitionPenaltyOption,
    SamplingSeedOption,
    SourceLanguageOption,
    StopOption,
    SystemOption,
    TargetArgument,
    TargetLanguageOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TraceOption,
    quantization,
)
from loraft.cli.runner import handle_errors
from loraft.errors import InvalidInputError
from loraft.grammar import counted
from loraft.inference.requests import GenerationRequest, ModelRequest

if TYPE_CHECKING:
    from loraft.api import Answering
    from loraft.inference.compare_adapters import CacheComparison, Speed
    from loraft.inference.completion import Completion, Finish

ENDS = {"stop_id": "the model ended its answer", "limit": "cut at the limit (--max-new-tokens)"}


@handle_errors
def generate(
    target: TargetArgument = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            show_default=False,
            help="A prompt; - reads standard input. May be repeated.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            show_default=False,
            help="Rows with prompt, messages, source or translation: JSONL, JSON, CSV, Parquet.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            show_default=False,
            help="Where each row of --input is written with its completion; the same command goes on with it.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever the output holds.")] = False,
    prompt_column: Annotated[
        str | None,
        typer.Option("--prompt-column", metavar="NAME", show_default=False, help="What --input calls prompt."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="How many prompts at a time, where there are many.")
    ] = 8,
    compare: Annotated[
        bool, typer.Option("--compare", help="Let the base and every adapter answer, side by side.")
    ] = False,
    adapters: AdaptersOption = None,
    base_model: BaseModelOption = None,
    quantize: QuantizeOption = None,
    dtype: DtypeOption = None,
    merge: MergeOption = False,
    system: SystemOption = None,
    source_lang: SourceLanguageOption = None,
    target_lang: TargetLanguageOption = None,
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
    """Answer prompts with a base model, or with what was trained.

    One answer goes to standard output as it comes; those to a file of prompts go to a file. Template, system prompt,
    stop tokens and sampling are those that were saved with the adapter, unless an option says otherwise.
    """
    if target is None and not adapters:
        raise typer.BadParameter("Name a TARGET, or an --adapter that brings its base.")
    if target is not None and not prompt and prompts is None:
        raise typer.BadParameter(f"{target!r} is TARGET, the model: give what it answers by --prompt or --input.")
    _refuse_contradictions(prompt or [], prompts, output, compare=compare, overwrite=overwrite)
    if prompt_column and prompts is None:
        raise typer.BadParameter("--prompt-column is about --input, and there is none.")
    if compare and merge:
        raise typer.BadParameter("--compare needs the base without its adapter, and --merge leaves none.")
    many = compare or prompts is not None
    _refuse_watching_many(prompt, trace=trace, layers=layers, no_kv_cache=no_kv_cache, many=many)
    asked = Asked(
        ModelRequest(
            target,
            adapters or (),
            base_model,
            quantization(quantize),
            dtype,
            merge,
            source_lang=source_lang,
            target_lang=target_lang,
        ),
        GenerationRequest(
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
        ),
    )
    if prompts is not None and output is not None:
        answer_file(
            asked,
            prompts,
            output,
            prompt_column=prompt_column,
            batch_size=batch_size,
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    texts = _prompt_texts(prompt or [])
    if compare:
        answer_compared(asked, texts, batch_size=batch_size, as_json=as_json)
    elif len(texts) > 1:
        answer_several(asked, texts, batch_size=batch_size, as_json=as_json)
    else:
        _stream(asked, texts[0], trace=trace, layers=layers, use_cache=not no_kv_cache, as_json=as_json)


def _refuse_contradictions(
    prompt: list[str], prompts: Path | None, output: Path | None, *, compare: bool, overwrite: bool
) -> None:
    if bool(prompt) == (prompts is not None):
        raise typer.BadParameter("Give either --prompt or --input.")
    if (prompts is None) != (output is None):
        raise typer.BadParameter("--input and --output belong together.")
    if compare and prompts is not None:
        raise typer.BadParameter("--compare answers each --prompt; it does not take --input.")
    if overwrite and output is None:
        raise typer.BadParameter("--overwrite is about --output, and there is none.")
    if prompt.count("-") > 1:
        raise typer.BadParameter("Standard input is one prompt: give -p - once.")


def _refuse_watching_many(
    prompt: list[str] | None, *, trace: bool, layers: bool, no_kv_cache: bool, many: bool
) -> None:
    if layers and not trace:
        raise typer.BadParameter("--layers tells more of a --trace: give both.")
    if (trace or no_kv_cache) and (many or len(prompt or ()) > 1):
        option = "--trace" if trace else "--no-kv-cache"
        raise typer.BadParameter(f"{option} looks at the answer to one --prompt: not with --input or --compare.")


def _stream(asked: Asked, prompt: str, *, trace: bool, layers: bool, use_cache: bool, as_json: bool) -> None:
    """One answer, as it comes."""
    from loraft.cli.console import print_json, print_note, waiting

    answers = sys.stdout
    with waiting("loading libraries and model"):
        from loraft import api

        stream = api.generate(
            asked.model,
            prompt=prompt,
            options=asked.options,
            trace=trace,
            layers=layers,
            use_cache=use_cache,
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
        from loraft.cli.console import print_result
        from loraft.cli.views.trace_view import render_trace

        print_result(*render_trace(stream.trace, stream.completion))
    _tell_end(stream.completion, stream.ending)
    if compared is not None:
        _tell_comparison(compared)


def _with_cache(stream: Answering) -> CacheComparison | None:
    """The same answer again with a cache, where that is to be compared."""
    from loraft.cli.console import waiting

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


def _prompt_texts(prompts: list[str]) -> list[str]:
    """The prompts as text; `-` is all of standard input, without its last line end.

    Raises:
        InvalidInputError: It is not UTF-8.
    """
    texts = []
    try:
        for prompt in prompts:
            if prompt == "-":
                texts.append(sys.stdin.buffer.read().decode("utf-8").removesuffix("\n"))
            else:
                prompt.encode("utf-8")
                texts.append(prompt)
    except UnicodeError as error:
        raise InvalidInputError("the prompt is not UTF-8 text", where="--prompt") from error
    return texts


def _write(pieces: Iterable[str], answers: TextIO) -> None:
    """Writes each piece as it comes, and a line end even where it is cut short."""
    from loraft.cli.console import printable

    on_terminal = answers.isatty()
    try:
        for piece in pieces:
            answers.write(printable(piece) if on_terminal else piece)
            answers.flush()
    finally:
        answers.write("\n")
    answers.flush()


def _tell_end(completion: Completion, ending: Finish | None) -> None:
    """How many tokens, how fast, and why there are no more."""
    from loraft.cli.console import printable, say

    told = [counted(len(completion.token_ids), "token"), _speed(completion)]
    if ending is not None:
        told.append(ENDS.get(ending.by) or f"ended at the stop text {printable(repr(ending.text))}")
    say((" · ".join(told), "dim"), prose=True)


def _tell_comparison(compared: CacheComparison) -> None:
    """Both speeds, and the first difference."""
    from loraft.cli.console import say
    from loraft.cli.views.trace_view import visible

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

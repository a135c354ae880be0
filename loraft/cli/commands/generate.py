"""`loraft generate`: a prompt in, an answer out, token by token; or many prompts."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loraft import api
from loraft.cli.console import is_unicode, print_either, print_json, print_note, print_result, printable, say, waiting
from loraft.cli.options import AnswerOptions, JsonOption, flag, option, refuse
from loraft.cli.text_tables import cut_answers, document
from loraft.cli.views.progress import watching
from loraft.cli.views.trace_view import render_trace, speed_words, visible
from loraft.errors import InvalidInputError
from loraft.figures import counted
from loraft.inference.requests import GenerationRequest, ModelRequest

if TYPE_CHECKING:
    from loraft.inference.batch_generate import AdapterComparison, AnsweredFile
    from loraft.inference.completion import CacheComparison, Completion, Finish


MOST_COLUMNS = 4
"""Voices beside one another; more stand below one another."""


@dataclass(frozen=True)
class PromptOptions:
    """What is to be answered, and where the answers go."""

    prompt: list[str] | None = option("TEXT", "A prompt; - reads standard input. May be repeated.", "--prompt", "-p")
    prompts: Path | None = option(
        "FILE",
        "Rows with prompt, messages, instruction, source or translation in any file that training reads, or plain "
        "text; - is standard input.",
        "--input",
    )
    output: Path | None = option(
        "FILE", "Where each row of --input is written with its completion; the same command goes on with it."
    )
    overwrite: bool = flag("Begin anew, whatever the output holds.")
    prompt_column: str | None = option("NAME", "What --input calls prompt.")
    batch_size: int = option("N", "How many prompts at a time, where there are many.", default=8, min=1)
    compare: bool = flag("Let the base and every adapter answer, side by side.")
    no_cuda_graphs: bool = flag("On CUDA, launch each step kernel by kernel, not as one graph: slower.")

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


def _answer_file(model: ModelRequest, options: GenerationRequest, given: PromptOptions, *, as_json: bool) -> None:
    """The answers in a file, and on standard output what was done."""
    assert given.prompts is not None
    assert given.output is not None
    with watching("answer_file") as view:
        done = api.answer_file(
            model,
            prompts=given.prompts,
            output=given.output,
            prompt_column=given.prompt_column,
            options=options,
            batch_size=given.batch_size,
            overwrite=given.overwrite,
            observer=view,
        )
    print_either(done.as_dict(), document(dict(_summary(done)), rest="answers"), as_json=as_json)


def _summary(done: AnsweredFile) -> Iterator[tuple[str, object]]:
    """What was done with a file, in words that need no legend."""
    for key, value in done.as_dict().items():
        if key == "held":
            if value:
                yield "there before", value
        elif key == "cut":
            yield "answers cut", cut_answers(done.cut, done.cut_by_positions)
        elif key != "cut_by_positions":
            yield "tokens of answers" if key == "tokens" else key, value


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
    ended = "ended" if completion.finish_reason == "stop" else "cut"
    how = f"{counted(len(completion.token_ids), 'token')}, {ended}"
    text = printable(completion.completion.strip()) or "(an empty answer)"
    return Text.assemble(text, "\n", (how, "dim"))


@dataclass(frozen=True)
class WatchOptions:
    """What is told of how one answer came about."""

    trace: bool = flag("Tell how each token came about: what was fed, what was likely, what was taken.")
    layers: bool = flag("With --trace: what each layer would have said, had it been the last.")
    no_kv_cache: bool = flag("Read everything again at each step, and compare the answer and its speed with the cache.")

    def check(self, *, many: bool) -> None:
        """Refuse to look at several answers."""
        refuse((self.layers and not self.trace, "--layers tells more of a --trace: give both."))
        name = "--trace" if self.trace else "--no-kv-cache"
        why = f"{name} looks at the answer to one --prompt: not with --input or --compare."
        refuse((many and (self.trace or self.no_kv_cache), why))


def generate(given: PromptOptions, asked: AnswerOptions, watch: WatchOptions, as_json: JsonOption = False) -> None:
    """Answer prompts with a base model, or with what was trained.

    One answer goes to standard output as it comes; those to a file of prompts go to a file. Template, system prompt,
    stop tokens and sampling are those that were saved with the adapter, unless an option says otherwise.
    """
    model, options = replace(asked.model, cuda_graphs=not given.no_cuda_graphs), asked.generation
    given.check(asked.target)
    refuse((given.compare and asked.merge, "--compare needs the base without its adapter, and --merge leaves none."))
    watch.check(many=given.compare or given.prompts is not None or len(given.prompt or ()) > 1)
    if given.prompts is not None:
        _answer_file(model, options, given, as_json=as_json)
        return
    texts = _prompt_texts(given.prompt or [])
    if not given.compare and len(texts) == 1:
        _stream(model, options, texts[0], watch, as_json=as_json)
        return
    asking: dict[str, Any] = {"prompts": texts, "options": options, "batch_size": given.batch_size}
    if given.compare:
        with watching("compare") as view:
            compared = api.compare(model, **asking, observer=view)
        told = compared if len(compared) > 1 else compared[0]
        print_either(told, map(_side_by_side, compared), as_json=as_json)
        return
    with watching("complete") as view:
        answers = api.complete(model, **asking, observer=view)
    if as_json:
        print_json(answers)
    else:
        _write_several(texts, answers)


def _write_several(prompts: Sequence[str], answers: Sequence[Completion]) -> None:
    """Each prompt with its answer on standard output, in the order of the prompts."""
    shown = printable if sys.stdout.isatty() else str
    texts = (f"> {prompt}\n{answer.completion}\n" for prompt, answer in zip(prompts, answers, strict=True))
    sys.stdout.write(shown("\n".join(texts)))


def _stream(
    model: ModelRequest, options: GenerationRequest, prompt: str, watch: WatchOptions, *, as_json: bool
) -> None:
    """One answer, as it comes."""
    answers = sys.stdout
    with waiting("loading libraries and model"):
        stream = api.generate(
            model,
            prompt=prompt,
            options=options,
            trace=watch.trace,
            layers=watch.layers,
            use_cache=not watch.no_kv_cache,
        )
    print_note(*stream.notes)
    with redirect_stdout(sys.stderr):
        pieces = (token.text for token in stream)
        if as_json or watch.trace:
            deque(pieces, maxlen=0)
        else:
            _write(pieces, answers)
    compared = None
    if stream.with_cache is not None:
        with waiting("the same answer, with the cache"):
            compared = stream.with_cache()
    if as_json:
        traced = {} if stream.trace is None else {"trace": stream.trace.as_dict()}
        both = {} if compared is None else {"no_kv_cache": asdict(compared)}
        print_json({**asdict(stream.completion), **traced, **both})
        return
    if stream.trace is not None:
        print_result(*render_trace(stream.trace, stream.completion))
    _tell_end(stream.completion, stream.ending)
    if compared is not None:
        _tell_comparison(compared)


def _prompt_texts(prompts: list[str]) -> list[str]:
    """The prompts as text; `-` is all of standard input, without its last line end."""
    texts = [_piped() if prompt == "-" else prompt for prompt in prompts]
    if not all(map(is_unicode, texts)):
        raise InvalidInputError("the prompt is not UTF-8 text", where="--prompt")
    return texts


def _piped() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")


def _write(pieces: Iterable[str], answers: TextIO) -> None:
    """Writes each piece as it comes, and a line end even where it is cut short."""
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
    told = [counted(len(completion.token_ids), "token"), speed_words(completion)]
    if ending is not None:
        ends = {
            "stop_id": "the model ended its answer",
            "limit": "cut at the limit (--max-new-tokens)",
            "positions": "cut where the model's positions end",
        }
        told.append(ends.get(ending.by) or f"ended at the stop text {printable(repr(ending.text))}")
    say((" · ".join(told), "dim"), prose=True)


def _tell_comparison(compared: CacheComparison) -> None:
    say(("without the KV cache ", "dim"), speed_words(compared.without_cache))
    say(("with it              ", "dim"), speed_words(compared.with_cache))
    if (apart := compared.first_difference) is None:
        say(("the same tokens both ways", "green"))
        return
    one, other = (
        "(the end)" if each is None else visible(each.text) for each in (apart.without_cache, apart.with_cache)
    )
    say((f"the answers part at token {apart.index}: {one} without the cache, {other} with it", "yellow"))
    say(("  the two ways round differently, and likely tokens lie close together; in float32 they agree", "dim"))

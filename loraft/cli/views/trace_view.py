"""A trace, drawn: how each token of an answer came about."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.columns import Columns
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loraft.cli.console import printable
from loraft.cli.text_tables import as_bytes, as_count, titled

if TYPE_CHECKING:
    from loraft.inference.completion import Completion, Speed
    from loraft.inference.tracer import Candidate, Step, Trace

SEEN = {" ": "␣", "\n": "⏎", "\t": "⇥"}
CUTS = {
    "top_k": "top-k", "top_p": "top-p", "min_p": "min-p", "never": "never said", "first": "must begin otherwise",
    "last": "must end here",
}  # fmt: skip
STEPS_BESIDE = 6
"""How many steps stand side by side where the layers' words are told."""

SECTIONS = ("prompt", "steps", "layers")


def visible(text: str) -> str:
    """A piece with its spaces and line ends to be seen: `␣the`, `⏎`, rarer blanks by their number."""
    seen = (SEEN.get(sign) or (f"<U+{ord(sign):04X}>" if sign.isspace() else sign) for sign in text)
    return printable("".join(seen)) or "∅"


def speed_words(speed: Speed | Completion) -> str:
    """How fast the prompt was read, and the answer written."""
    rate = speed.decode_tokens_per_second
    return f"prompt read in {speed.prefill_ms:.0f} ms" + (f" · {rate:.1f} tokens/s" if rate is not None else "")


def render_trace(trace: Trace, completion: Completion, only: Container[str] = SECTIONS) -> Iterator[RenderableType]:
    """The prompt, the steps, what the layers say, and why the answer ended."""
    if "prompt" in only:
        yield _prompt(trace)
    if "steps" in only:
        yield _steps(trace)
        yield _legend(trace)
    if "layers" in only and any(step.layers for step in trace.steps):
        yield from _layers(trace.steps)
    yield Text.assemble(("answer  ", "bold"), printable(completion.completion))
    yield Text.assemble(("ended   ", "bold"), _ending(trace))


def _prompt(trace: Trace) -> RenderableType:
    count = as_count(len(trace.prompt))
    if trace.encoder is not None:
        title = f"source: {count} tokens, read once by the encoder in {trace.encoder.milliseconds:.1f} ms"
    else:
        title = f"prompt: {count} tokens, each with its id"
    pieces = (Text.assemble((visible(piece.text), "cyan"), (f" {piece.id}", "dim")) for piece in trace.prompt)
    return titled(title, _beside(pieces), indent=2)


def _steps(trace: Trace) -> RenderableType:
    differ = any(_differ(candidate) for step in trace.steps for candidate in step.candidates)
    hows = dict.fromkeys(step.how for step in trace.steps)
    # The columns that only some answers have: how a token was taken, where that varies, and an encoder's tokens.
    varies, attends = len(hows) > 1, trace.encoder is not None
    table = _table()
    table.add_column("", justify="right", style="dim")
    table.add_column("fed", overflow="fold", min_width=7)
    table.add_column("likeliest, %" + (", model → rules" if differ else ""))
    table.add_column("taken", overflow="fold", style="bold green", min_width=6)
    if varies:
        table.add_column("how")
    if attends:
        table.add_column("attends to, %")
    table.add_column("bits", justify="right")
    table.add_column("cache", justify="right", no_wrap=True)
    table.add_column("ms", justify="right")
    for step in trace.steps:
        table.add_row(
            str(step.index),
            _fed(step, trace),
            _beside(_candidate(candidate, step.taken.id, differ=differ) for candidate in step.candidates),
            visible(step.taken.text),
            *([step.how] if varies else []),
            *([_attended(step)] if attends else []),
            f"{step.entropy_bits:.2f}",
            f"{step.cache_tokens} · {as_bytes(step.cache_bytes)}" if trace.use_cache else "none",
            f"{step.milliseconds:.0f}",
        )
    rules = "".join(f" · {name.replace('_', ' ')} {value}" for name, value in trace.rules.items())
    return titled(f"steps: {', '.join(hows)}{rules}", table, indent=2)


def _legend(trace: Trace) -> RenderableType:
    """What the columns mean, and what is so."""
    if trace.encoder is not None:
        cached = "the newest token alone; the cache keeps keys and values of it and of the source"
        read = f"fed: the decoder is fed {cached if trace.use_cache else 'all that it said again at each step'}"
    elif trace.use_cache:
        read = "fed: the prompt is read once, then the newest token alone; the cache keeps keys and values"
    else:
        read = "fed: without a cache everything is read again at each step; only the last position counts"
    lines = [read, "bits: each token of the vocabulary gets a share; their entropy, 0 where the model is sure"]
    if trace.encoder is not None:
        lines.append(
            "attends to: the encoder made one vector of each token, once; each step weighs them all anew\n"
            "(mean over the heads of the last layers, computed again at the end with plain attention)"
        )
    return Padding(Text("\n".join(lines), style="dim"), (0, 0, 1, 2))


def _differ(candidate: Candidate) -> bool:
    return candidate.cut_by is not None or abs(candidate.probability - candidate.probability_after) > 1e-6


def _fed(step: Step, trace: Trace) -> str:
    if step.index == 0:
        return "prompt" if trace.encoder is None else visible(step.fed[0].text)
    if trace.use_cache:
        return visible(step.fed[0].text)
    return f"all {as_count(len(step.fed))}"


def _candidate(candidate: Candidate, taken: int, *, differ: bool) -> Text:
    words = f"{visible(candidate.text)} {_share(candidate, differ=differ)}"
    return Text(words, "green" if candidate.id == taken else "dim" if candidate.cut_by else "")


def _attended(step: Step) -> RenderableType:
    return _beside(Text(f"{visible(look.text)} {100 * look.weight:.1f}") for look in step.attended)


def _beside(texts: Iterable[Text]) -> RenderableType:
    """Short texts side by side, none torn apart at the end of a line."""
    return Columns(list(texts), padding=(0, 2))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, header_style="dim", show_edge=False, pad_edge=False, collapse_padding=True)


def _share(candidate: Candidate, *, differ: bool) -> str:
    model = f"{100 * candidate.probability:.1f}"
    if not differ:
        return model
    if candidate.cut_by is not None:
        return f"{model}→{CUTS.get(candidate.cut_by, candidate.cut_by)}"
    return f"{model}→{100 * candidate.probability_after:.1f}"


def _layers(steps: Sequence[Step]) -> Iterator[RenderableType]:
    """What each layer would have said at each step, some steps beside one another."""
    for start in range(0, len(steps), STEPS_BESIDE):
        beside = steps[start : start + STEPS_BESIDE]
        table = _table()
        table.add_column("layer", justify="right", style="dim")
        for step in beside:
            table.add_column(f"{step.index}: {visible(step.taken.text)}", overflow="fold")
        for said in zip(*(step.layers for step in beside), strict=True):
            words = (f"{visible(word.text)} {100 * word.probability:.1f}" for word in said)
            styles = ("green" if word.rank_of_taken == 1 else "" for word in said)
            table.add_row(str(said[0].layer), *map(Text, words, styles))
        title = "what each layer would have said, in %, had it been the last (green: what was taken)"
        yield titled(title, table, indent=2)


def _ending(trace: Trace) -> str:
    ending = trace.ending
    if ending.by == "stop_id":
        return f"stop id {ending.token_id}, {visible(trace.ended_with or '')}"
    if ending.by == "stop_text":
        return f"the stop text {visible(ending.text or '')}"
    if ending.by == "positions":
        return f"the model's positions end after {as_count(ending.limit or 0)} tokens"
    return f"the limit of {as_count(ending.limit or 0)} tokens"

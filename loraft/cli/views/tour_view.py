"""A screen of the tour: its idea, its commands with what they print, and what to take from them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from loraft.cli.console import printable
from loraft.cli.text_tables import as_share, facts, text_table
from loraft.cli.text_tables import document as sections_of
from loraft.cli.views.baseline_view import SECTIONS as OF_BASELINE
from loraft.cli.views.baseline_view import baseline_view
from loraft.cli.views.cost_view import cost_view
from loraft.cli.views.inside_view import SECTIONS as OF_ACTIVATIONS
from loraft.cli.views.inside_view import activations_view, gradients_view
from loraft.cli.views.layers_view import SECTIONS as OF_LAYERS
from loraft.cli.views.layers_view import layers_view
from loraft.cli.views.trace_view import SECTIONS as OF_TRACE
from loraft.cli.views.trace_view import render_trace, speed_words
from loraft.cli.views.written_view import merge_view
from loraft.tour.screens import Document, Fact, Part, Shown

WIDEST = 100
"""Sentences are not drawn wider: longer lines are hard to read."""
COMMAND_WIDTH = 74
SAID, SO, MEASURED = "commonly said", "what is so", "measured here"


def parts_view(parts: Mapping[int, Part], folder: str) -> Iterator[RenderableType]:
    """The list of the parts, and how one is begun."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    for number, part in parts.items():
        count = len(part.screens)
        table.add_row(str(number), part.title, Text(f"{count} screen{'s' * (count != 1)}", style="dim"))
    yield Text("How a transformer generates and is fine-tuned, live on this machine.\n")
    yield Padding(table, (0, 0, 1, 2))
    first = next(iter(parts))
    yield Text(f"One of them:  loraft tour {first}\nAll of them:  loraft tour --all\n")
    yield _prose(f"What the commands read and write is in {folder}; it can be deleted at any time.")


def heading(number: int, part: Part, screen: int) -> RenderableType:
    """Where in the tour one is."""
    of = f" · screen {screen + 1} of {len(part.screens)}"
    return Rule(Text.assemble((f"Part {number}: {part.title}", "bold"), (of, "dim")), align="left", style="dim")


def idea_view(idea: str) -> RenderableType:
    """The idea of a screen, and an empty line around it."""
    return Padding(_prose(idea), (1, 0))


def command_view(shown: Shown, *, again: bool = False) -> RenderableType:
    """A command as one types it, and which sections of what it prints follow; none where they were shown before."""
    lines = ["loraft"]
    for word in _with_values(shlex.split(shown.words)):
        if len(lines[-1]) + len(word) >= COMMAND_WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}"
    text = Text("$ " + " \\\n".join(lines), style="bold")
    if again:
        text.append("\n# it ran before: what it printed stands above", style="dim not bold")
    elif shown.only:
        text.append(f"\n# of what it prints: {', '.join(shown.only)}", style="dim not bold")
    return Padding(text, (0, 0, 1, 0))


def _with_values(words: Sequence[str]) -> Iterator[str]:
    """The words as a shell takes them, an option and its value as one."""
    option = ""
    for word in words:
        if option and word.startswith("--"):
            yield option
            option = ""
        if word.startswith("--"):
            option = word
        else:
            yield f"{option} {shlex.quote(word)}".lstrip()
            option = ""
    if option:
        yield option


def output_view(shown: Shown, document: Any) -> Iterator[RenderableType]:
    """What a command prints, drawn from its document as the command itself draws it."""
    name = shown.words.split()[0]
    if "problems" in document:
        yield Padding(Text("\n".join(_problems(document))), (0, 0, 1, 0))
    elif name == "generate":
        yield from _answer(document, shown.only or OF_TRACE)
        if "no_kv_cache" not in document:
            yield Text()
    elif "activations" in document:
        yield from activations_view(document["activations"], every=False, only=shown.only or OF_ACTIVATIONS)
    elif "gradients" in document:
        yield from gradients_view(document["gradients"])
    elif name == "inspect-layers":
        yield from layers_view(document, every=False, only=shown.only or OF_LAYERS)
    elif name == "baseline":
        yield from _baseline(document, shown.only or OF_BASELINE)
    elif name == "predict":
        shares = sorted(document["probabilities"].items(), key=lambda each: -each[1])
        rows = [(label, as_share(share)) for label, share in shares]
        yield text_table(document["prediction"], ("class", ">probability"), rows)
    elif name == "compare":
        yield from cost_view(document)
    elif name == "merge":
        yield from merge_view(document)
    else:
        only = shown.only or document
        yield from sections_of({key: part for key, part in document.items() if key in only}, rest="run")


def _baseline(document: Document, only: Sequence[str]) -> Iterator[RenderableType]:
    from pydantic import TypeAdapter

    from loraft.baselines.baseline_report import BaselineReport

    return baseline_view(TypeAdapter(BaselineReport).validate_python(document), only)


def _problems(document: Document) -> Iterator[str]:
    for problem in document["problems"]:
        place = problem.get("where") or problem.get("key")
        yield printable(f"error: {f'{place}: ' if place else ''}{problem['message']}")
        if problem.get("remedy"):
            yield printable(f"  {problem['remedy']}")
    yield f"(exit code {document['exit_code']})"


def _answer(document: Document, only: Sequence[str]) -> Iterator[RenderableType]:
    """An answer with its trace, where there is one, and the two ways beside each other, where both were gone."""
    from pydantic import TypeAdapter

    from loraft.inference.completion import CacheComparison, Completion
    from loraft.inference.tracer import Trace

    completion = TypeAdapter(Completion).validate_python(document)
    if "trace" in document:
        trace = TypeAdapter(Trace).validate_python(_with_texts(document["trace"]))
        yield from render_trace(trace, completion, only)
    else:
        yield Text(printable(completion.completion))
    if "no_kv_cache" in document:
        both = TypeAdapter(CacheComparison).validate_python(document["no_kv_cache"])
        rates = {"without the KV cache": speed_words(both.without_cache), "with it": speed_words(both.with_cache)}
        same = "the same, token for token" if both.same_tokens else "not the same: the two ways round differently"
        yield Text()
        yield facts("speed", {**rates, "the answers": same})


def _with_texts(trace: Document) -> dict[str, Any]:
    """A trace whose tokens that were fed have their texts again, of which the document has the ids alone."""
    texts = {piece["id"]: piece["text"] for piece in trace["prompt"]}
    for step in trace["steps"]:
        texts |= {piece["id"]: piece["text"] for piece in (*step["candidates"], step["taken"])}
    steps = [
        {**step, "fed": [{"id": each, "text": texts.get(each, f"#{each}")} for each in step["fed"]]}
        for step in trace["steps"]
    ]
    return {**trace, "steps": steps}


def fact_view(fact: Fact, documents: Sequence[Document]) -> RenderableType:
    """What is said, what is so, and what the commands above measured of it."""
    rows = ((SAID, fact.said, "dim"), (SO, fact.so, "bold"), (MEASURED, fact.measured(*documents), ""))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=len(MEASURED), no_wrap=True)
    table.add_column(overflow="fold")
    for label, text, style in rows:
        if text:
            table.add_row(label, Text(printable(text), style=style))
    return Padding(Constrain(table, WIDEST), (0, 0, 1, 0))


def _prose(text: str) -> RenderableType:
    return Constrain(Text(text), WIDEST)

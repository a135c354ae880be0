"""What each method costs, as a person reads it: methods are columns, quantities are rows; and as a picture.

It draws what `--json` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import RenderableType

from loraft.cli.text_tables import Document, as_bytes, as_count, as_measure, as_rate, as_share, facts, text_table
from loraft.cli.views.plots import COLOURS, INK, dress, picture

Cell = Callable[[Document], str]

PARTS = ("runtime", "weights", "adapter", "gradients", "optimizer", "activations")
"""The parts of the peak, in the order in which they come to be."""
NAMES = {"runtime": "before the model", "activations": "activations, rest"}
NOTHING = "–"


def cost_view(document: Document) -> Iterator[RenderableType]:
    """What was done, then the tables, then why a method has no figures."""
    names = ("model", "task", "device", "steps", "rows", "tokens", "trained_tokens")
    about = {key: document[key] for key in names} | {"memory of": document["memory_of"]}
    yield facts("each method, on the same rows in the same order", about, label_width=17)
    methods = document["methods"]
    headings = ("", *(f">{each['method']}" for each in methods))
    for title, rows in (("memory", _memory(methods)), ("training", _training(document))):
        yield text_table(title, headings, [(name, *map(cell, methods)) for name, cell in rows])
    if reasons := {each["method"]: f"{each['outcome']}: {each['why']}" for each in methods if each["why"]}:
        yield facts("not measured", reasons, label_width=17)


def _memory(methods: Sequence[Document]) -> Iterator[tuple[str, Cell]]:
    yield "frozen weights in", _of_measured(lambda cost: " + ".join(cost["frozen_bytes"]) or "all trained")
    for part in PARTS:
        if any(each["measured"] and each["measured"]["memory"][part] for each in methods):
            yield NAMES.get(part, part), _part(part)
    yield "peak, measured", _of_measured(lambda cost: _finely(cost["memory"]["peak_bytes"]))
    yield "peak, predicted", lambda each: _finely(each["predicted"]["peak_bytes"])
    yield "predicted is off by", _off
    yield "peak of loading", _of_measured(lambda cost: as_bytes(cost["loading_peak_bytes"]))


def _training(document: Document) -> Iterator[tuple[str, Cell]]:
    steps = document["steps"]
    last = max(1, steps // 4)
    yield "trained", _of_measured(lambda cost: as_count(cost["trained_parameters"]))
    yield "share of all", _of_measured(lambda cost: as_share(cost["trained_parameters"], cost["total_parameters"]))
    yield "what is saved", _of_measured(lambda cost: as_bytes(cost["saved_bytes"]))
    yield "learning rate", lambda each: as_rate(each["learning_rate"])
    if any(each["measured"] and each["measured"]["gradient_checkpointing"] for each in document["methods"]):
        yield "checkpointed", _of_measured(lambda cost: "yes" if cost["gradient_checkpointing"] else "no")
    yield "tokens/s", _of_measured(lambda cost: as_count(round(cost["tokens_per_second"])))
    yield "loss of step 1", _of_measured(lambda cost: as_measure(cost["losses"][0]))
    if steps > 1:
        span = f"steps {steps - last + 1}–{steps}" if last > 1 else f"step {steps}"
        yield f"loss of {span}", _of_measured(lambda cost: as_measure(cost["last_loss"]))


def _part(name: str) -> Cell:
    return _of_measured(lambda cost: as_bytes(cost["memory"][name]) if cost["memory"][name] else NOTHING)


def _of_measured(cell: Callable[[Document], str]) -> Cell:
    return lambda each: NOTHING if each["measured"] is None else cell(each["measured"])


def _finely(size: int) -> str:
    """Bytes that are compared: a figure more than `as_bytes` has."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else as_bytes(size)


def _off(each: Document) -> str:
    if each["measured"] is None:
        return each["outcome"] if each["outcome"] == "does not fit" else NOTHING
    measured = each["measured"]["memory"]["peak_bytes"]
    off = round(100 * (each["predicted"]["peak_bytes"] / measured - 1), 1)
    return f"{off:+.1f} %" if off else "0.0 %"


def plot_costs(document: Document, path: Path) -> None:
    """Draw the memory of each method by part, and what was predicted.

    Raises:
        RunError: The file cannot be written.
    """
    names = [each["method"] + ("" if each["measured"] else f"\n({each['outcome']})") for each in document["methods"]]
    memories = [each["measured"]["memory"] if each["measured"] else {} for each in document["methods"]]
    with picture(path) as ((axes,),):
        floor = [0.0] * len(names)
        for colour, part in zip(COLOURS, PARTS, strict=True):
            heights = [memory.get(part, 0) / 1e9 for memory in memories]
            axes.bar(names, heights, 0.6, bottom=floor, color=colour, label=NAMES.get(part, part))
            floor = [below + height for below, height in zip(floor, heights, strict=True)]
        predicted = [each["predicted"]["peak_bytes"] / 1e9 for each in document["methods"]]
        begins, ends = ([place + side for place in range(len(names))] for side in (-0.38, 0.38))
        axes.hlines(predicted, begins, ends, INK, "dashed", linewidth=1.8, label="predicted")
        dress(axes, f"Peak memory of training {Path(document['model']).name}", y="GB", grid="y")
        handles, labels = axes.get_legend_handles_labels()  # from above to below, as the parts lie
        axes.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

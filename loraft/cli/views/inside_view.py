"""What `inspect-layers` tells of activations and of gradients, as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from statistics import fmean

from rich.console import RenderableType

from loraft.cli.text_tables import Document, as_count, as_measure, as_share, bar, facts, layer_name, text_table
from loraft.figures import counted

WIDE = 20
MOST_HEADS = 6
"""Of each kind, where not every head is asked for."""
MUCH = 0.5
"""The part of its attention from which on a head is said to look at the first token."""
LONGEST_TEXT = 300
SECTIONS = ("stream", "attention")
HEAD_HEADINGS = (">entropy", ">of most", ">first token")


def activations_view(found: Document, *, every: bool, only: Container[str] = SECTIONS) -> Iterator[RenderableType]:
    """The residual stream and the attention of each stack; `every` head is shown, or only those that stand out."""
    yield facts("activations", _read(found), label_width=WIDE)
    for stack in found["stacks"]:
        layers = [layer for layer in found["layers"] if layer["stack"] == stack["name"]]
        if "stream" in only:
            yield _stream(stack, layers)
        if "attention" not in only:
            continue
        far = "back" if stack["causal"] else "away"
        yield from _attention(
            f"{stack['name']} attention", layers, "heads", far, stack["distance_if_even"], every=every
        )
        yield from _attention(f"{stack['name']} attention to the source", layers, "cross_heads", every=every)


def _read(found: Document) -> dict[str, object]:
    rows: dict[str, object] = {"model": found["model"], "read": _short(found["read"])}
    if found["answer"] is not None:
        rows["its decoder"] = f"{_short(found['answer'])} (its own greedy answer)"
    rows["tokens"] = " · ".join(f"{stack['name']} {as_count(stack['tokens'])}" for stack in found["stacks"])
    rows["first token"] = found["first_token"].strip()
    return rows


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _stream(stack: Document, layers: Sequence[Document]) -> RenderableType:
    """‖h‖ by layer, from what the first layer reads."""
    most = max((layer["norm"] for layer in layers if math.isfinite(layer["norm"])), default=0)
    rows = [("read", as_measure(stack["norm"]), as_measure(stack["first_norm"]), "", bar(stack["norm"], most))]
    for layer in layers:
        norms = as_measure(layer["norm"]), as_measure(layer["first_norm"]), as_share(layer["change"])
        rows.append((str(layer["index"]), *norms, bar(layer["norm"], most)))
    title = f"{stack['name']}: the residual stream, a mean over the tokens after the first"
    return text_table(title, (">layer", ">‖h‖", ">first token's", ">changed by", ""), rows)


def _attention(
    title: str, layers: Sequence[Document], key: str, far: str = "", even: float | None = None, *, every: bool
) -> Iterator[RenderableType]:
    """How far heads look is told where `far` is a word for it."""
    heads = [(layer["index"], head) for layer in layers for head in layer[key]]
    if not heads:
        return
    headings = (*HEAD_HEADINGS, *((f">tokens {far}", ">without first") if far else ()))
    summary = _summary(heads) | ({f"tokens {far}": f"{even:.1f} if all in sight had the same weight"} if even else {})
    yield facts(title, summary, label_width=WIDE)
    rows = [(str(layer["index"]), *_means(layer[key])) for layer in layers if layer[key]]
    yield text_table(f"{title}: means over the heads of a layer", (">layer", *headings), rows)
    if every:
        yield text_table(f"{title}: every head", (">head", *headings), [_head(*each) for each in heads])
        return
    first = sorted(heads, key=lambda each: -each[1]["first_token"])[:MOST_HEADS]
    yield text_table(f"{title}: most at the first token", (">head", *headings), [_head(*each) for each in first])
    others = [each for each in heads if each[1]["first_token"] <= MUCH and each[1]["distance_past_first"] is not None]
    others.sort(key=lambda each: -each[1]["distance_past_first"])
    if others:
        words = "farthest, with less than half at the first token"
        yield text_table(f"{title}: {words}", (">head", *headings), [_head(*each) for each in others[:MOST_HEADS]])


def _summary(heads: Sequence[tuple[int, Document]]) -> dict[str, object]:
    shares = [head["entropy_share"] for _, head in heads]
    much = sum(head["first_token"] > MUCH for _, head in heads)
    return {
        "heads": f"{as_count(len(heads))}, named LAYER.HEAD below",
        "entropy": f"in nats; {as_share(fmean(shares))} of the greatest possible in the mean",
        "at the first token": f"{as_count(much)} of {as_count(len(heads))} heads, with more than half of their weight",
    }


def _means(heads: Sequence[Document]) -> tuple[str, ...]:
    means: dict[str, float | None] = {}
    for key in ("entropy", "entropy_share", "first_token", "distance", "distance_past_first"):
        values = [head[key] for head in heads if head[key] is not None]
        means[key] = fmean(values) if values else None
    return _looks(means)


def _head(index: int, head: Document) -> tuple[str, ...]:
    return f"{index}.{head['head']}", *_looks(head)


def _looks(head: Document) -> tuple[str, ...]:
    looks = f"{head['entropy']:.2f}", as_share(head["entropy_share"]), as_share(head["first_token"])
    if head["distance"] is None:
        return looks
    beyond = head["distance_past_first"]
    return *looks, f"{head['distance']:.1f}", "–" if beyond is None else f"{beyond:.1f}"


def gradients_view(found: Document) -> Iterator[RenderableType]:
    """The batch and the verdict, then the gradient of each layer."""
    yield facts("gradients", _batch(found), label_width=WIDE)
    several = len(found["courses"]) > 1
    most = max((layer["stream_norm"] or 0 for layer in found["layers"]), default=0)
    rows = [
        (
            layer_name(layer, with_stack=several),
            as_count(layer["parameters"]) if layer["parameters"] else "–",
            as_measure(layer["norm"]),
            as_measure(layer["stream_norm"]),
            bar(layer["stream_norm"], most),
        )
        for layer in found["layers"]
    ]
    headings = (">layer", ">trained", ">its gradient", ">of the residual stream", "")
    yield text_table("gradients by layer", headings, rows)
    if found["outside"]:
        outside = [(each["name"], as_count(each["parameters"]), as_measure(each["norm"])) for each in found["outside"]]
        yield text_table("gradients outside the layers", ("parameter", ">trained", ">its gradient"), outside)


def _batch(found: Document) -> dict[str, object]:
    targets = f"{as_count(found['targets'])} targets"
    rows: dict[str, object] = {
        "model": f"{found['model']}, {found['method']}",
        "trained": found["trained"] or "not yet: before the first step",
        "batch": f"{counted(len(found['rows']), 'row', 'rows')}, {as_count(found['tokens'])} tokens, {targets}",
        "loss": f"{as_measure(found['loss'])} nats a target",
        "norm": f"{as_measure(found['norm'])} over all that is trained",
    }
    if found["idle"]:
        by_lora = all("lora_A" in name for name in found["idle"])
        why = ": A of each pair, since B begins at zero" if by_lora else f": {', '.join(found['idle'][:3])}, …"
        rows["no gradient yet"] = f"{as_count(len(found['idle']))} trained tensors{why}"
    for course in found["courses"]:
        rows[course["stack"] if len(found["courses"]) > 1 else "verdict"] = _verdict(course, found["layers"])
    return rows


def _verdict(course: Document, layers: Sequence[Document]) -> str:
    """One sentence: what, by which ratio, by which thresholds."""
    if course["course"] == "not finite":
        return "not finite: NaN or infinity in the gradient of the residual stream"
    if course["ratio"] is None:
        return "none: the gradient comes to one layer alone, or is zero"
    norms = {(layer["stack"], layer["index"]): layer["stream_norm"] for layer in layers}
    first, last = (norms[course["stack"], course[which]] for which in ("first", "last"))
    words = "neither vanishing nor exploding" if course["course"] == "steady" else course["course"]
    return (
        f"{words}: the residual stream's gradient is {as_measure(first)} at layer {course['first']} and "
        f"{as_measure(last)} at layer {course['last']}, a ratio of {_ratio(course['ratio'])} "
        f"(vanishing below {course['vanishing_below']:g}, exploding above {course['exploding_above']:,g})"
    )


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

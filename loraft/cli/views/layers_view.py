"""What `inspect-layers --json` prints, as a person reads it: equal layers are one group."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from statistics import fmean

from rich.console import RenderableType

from loraft.cli.text_tables import (
    Document,
    as_bytes,
    as_count,
    as_measure,
    as_share,
    as_span,
    bar,
    facts,
    layer_name,
    text_table,
)
from loraft.figures import listed

WIDE = 20
"""The label column of the sections, so that all of them line up."""
MOST_ROWS = 12
"""Layers that are shown where not every one is asked for."""

SECTIONS = ("model", "positions", "parameters", "modules", "LoRA", "adapters")

LAYER_HEADINGS = ("module", "shape", ">parameters", "dtype", ">bytes", ">LoRA")
SHARING = {
    "MHA": "each query head has a key/value head of its own",
    "GQA": "several query heads share a key/value head",
    "MQA": "all query heads share one key/value head",
}


def layers_view(document: Document, *, every: bool, only: Container[str] = SECTIONS) -> Iterator[RenderableType]:
    """The sections of a document; `every` layer and module is shown, or only groups and the most moved."""
    if "model_type" in document:
        yield from (section for name, section in _of_model(document, every=every) if name in only)
    for adapter in document.get("adapters", ()) if "adapters" in only else ():
        yield from _adapter(adapter, every=every)
    for likeness in document.get("likenesses", ()):
        yield from _likeness(likeness, every=every)


def _of_model(document: Document, *, every: bool) -> Iterator[tuple[str, RenderableType]]:
    """The sections about the model, by name."""
    yield "model", facts("model", _model(document), label_width=WIDE)
    yield "positions", facts("positions", _positions(document["position_encoding"]), label_width=WIDE)
    yield "parameters", _sizes(document)
    yield from (("modules", table) for table in _layers(document, every=every))
    if document["lora"]:
        yield "LoRA", facts("LoRA", _lora(document["lora"]), label_width=WIDE)


def _adapter(adapter: Document, *, every: bool) -> Iterator[RenderableType]:
    title = f"adapter {adapter['name']}"
    rows: dict[str, object] = {
        "folder": adapter["folder"],
        "names the base": adapter["base"],
        "kind": f"{adapter['kind']}, r {', '.join(map(str, adapter['ranks']))}, alpha {as_count(adapter['alpha'])}",
        "holds": f"{as_count(adapter['parameters'])} numbers: {_by_dtype(adapter['dtypes'], as_count)}",
        "‖ΔW‖": as_measure(adapter["norm"]),
    }
    if adapter["relative"] is not None:
        rows["‖ΔW‖ / ‖W‖"] = as_share(adapter["relative"])
    rows["dead modules"] = _some(adapter["dead"], "B is zero there: nothing was learned") or "none"
    rows["not finite"] = _some(adapter["non_finite"], "NaN or infinity: it cannot be used") or "none"
    if adapter["unread"]:
        rows["not understood"] = _some(adapter["unread"], "")
    yield facts(title, rows, label_width=WIDE)
    if adapter["saved"]:
        headings = ("trained whole", "shape", ">‖ΔW‖", ">of ‖W‖")
        yield text_table(f"{title}: trained whole", headings, map(_saved, adapter["saved"]))
    yield from _moves(title, adapter, every=every)


def _moves(title: str, adapter: Document, *, every: bool) -> Iterator[RenderableType]:
    by = "norm" if adapter["relative"] is None else "relative"
    layers = adapter["layers"] if every else sorted(adapter["layers"], key=lambda layer: -(layer[by] or 0))[:MOST_ROWS]
    most = max((layer[by] or 0 for layer in adapter["layers"]), default=0)
    words = "layers" if every else f"the {len(layers)} layers that moved most, of {len(adapter['layers'])}"
    rows = [
        (layer_name(layer), as_measure(layer["norm"]), as_share(layer["relative"]), bar(layer[by], most, WIDE))
        for layer in layers
    ]
    if rows:
        yield text_table(f"{title}: {words}", ("layer", ">‖ΔW‖", ">of ‖W‖", ""), rows)
    yield from _kinds(title, adapter) if not every else _every_module(title, adapter)


def _kinds(title: str, adapter: Document) -> Iterator[RenderableType]:
    """The modules of one name together: how far they moved at least, at most, and in how many directions."""
    by_name: dict[str, list[Document]] = {}
    for module in adapter["modules"]:
        if module["finite"]:
            by_name.setdefault(module["name"], []).append(module)
    several = len({module["stack"] for module in adapter["modules"] if module["index"] is not None}) > 1
    counts = {len(group) for group in by_name.values()}
    rows = []
    for name, group in by_name.items():
        farthest = max(group, key=lambda module: module["relative"] or module["norm"])
        relative = farthest["relative"]
        how_far = as_measure(farthest["norm"]) if relative is None else as_share(relative)
        ranks, shares = ([module[key] for module in group] for key in ("effective_rank", "relative"))
        rows.append(
            (
                name,
                *([as_count(len(group))] if len(counts) > 1 else []),
                as_measure(fmean(module["norm"] for module in group)),
                as_share(None if None in shares else fmean(shares)),
                "" if farthest["index"] is None else f"{how_far} in {layer_name(farthest, with_stack=several)}",
                f"{min(ranks):.1f}–{max(ranks):.1f} of {as_span(sorted({module['rank'] for module in group}))}",
            )
        )
    if rows:
        count, of_each = ([">count"], "") if len(counts) > 1 else ([], f" {counts.pop()}")
        headings = ("module", *count, ">‖ΔW‖", ">of ‖W‖", "farthest", "effective rank")
        yield text_table(f"{title}: by module, means over the{of_each} of each name", headings, rows)


def _every_module(title: str, adapter: Document) -> Iterator[RenderableType]:
    rows = [
        (
            module["path"],
            str(module["rank"]),
            as_measure(module["norm"]),
            as_share(module["relative"]),
            "–" if module["effective_rank"] is None else f"{module['effective_rank']:.1f}",
            "not finite" if not module["finite"] else "dead" if module["dead"] else "",
        )
        for module in adapter["modules"]
    ]
    yield text_table(f"{title}: modules", ("module", ">r", ">‖ΔW‖", ">of ‖W‖", ">effective rank", ""), rows)


def _likeness(likeness: Document, *, every: bool) -> Iterator[RenderableType]:
    title = f"{likeness['one']} and {likeness['other']}"
    yield facts(title, {"cosine of updates": _cosine(likeness["cosine"])}, label_width=WIDE)
    layers = likeness["layers"]
    words = "by layer"
    if len(layers) > MOST_ROWS and not every:
        layers = sorted(layers, key=lambda layer: layer["cosine"] or 0)[:MOST_ROWS]
        words = f"the {MOST_ROWS} layers that are least alike, of {len(likeness['layers'])}"
    rows = [(layer_name(layer), _cosine(layer["cosine"])) for layer in layers]
    yield text_table(f"{title}: {words}", ("layer", ">cosine"), rows)
    if every:
        modules = [(module["path"], _cosine(module["cosine"])) for module in likeness["modules"]]
        yield text_table(f"{title}: by module", ("module", ">cosine"), modules)


def _by_dtype(sizes: Mapping[str, int], said: Callable[[float], str]) -> str:
    return " · ".join(f"{said(size)} in {dtype}" for dtype, size in sizes.items())


def _some(names: Sequence[str], meaning: str) -> str:
    return f"{len(names)}: {listed(names, 3)}{meaning and f' ({meaning})'}" if names else ""


def _saved(row: Document) -> tuple[str, ...]:
    norm = as_measure(row["norm"]) if row["finite"] else "not finite"
    return row["name"], _shape(row), norm, as_share(row["relative"])


def _shape(module: Document) -> str:
    return " × ".join(map(as_count, module["shape"]))


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _model(document: Document) -> dict[str, object]:
    heads, shared = document["num_attention_heads"], document["num_key_value_heads"]
    rows: dict[str, object] = {"name": document["model"], "type": f"{document['model_type']} ({document['kind']})"}
    rows["class"] = document["architecture"]
    for stack in document["stacks"]:
        bare = "" if stack["path"] == stack["bare_path"] else f" (on a bare AutoModel: {stack['bare_path']})"
        rows[f"{stack['name']} layers"] = f"{stack['layers']} × {stack['layer_class']} at {stack['path']}{bare}"
    rows["hidden size"] = document["hidden_size"]
    if heads:
        kind, size = document["attention"], document["head_size"]
        rows["attention"] = f"{kind}: {heads} query heads, {shared} key/value heads of {size}; {SHARING[kind]}"
        if window := document["sliding_window"]:
            rows["sliding window"] = f"{as_count(window)} tokens, in the layers that have one"
    rows["feed-forward"] = _feed_forward(document["feed_forward"])
    if experts := document["experts"]:
        rows["experts"] = (
            f"{experts['count']} in a layer, {experts['active']} for a token: "
            f"{as_count(document['active_parameters'])} of all parameters are active"
        )
    rows["norms"] = _norms(document["norms"])
    tied = {True: ", tied to the head", False: ", the head apart", None: ", no head"}[document["tied_embeddings"]]
    rows["vocabulary"] = f"{as_count(document['vocabulary'])}{tied}" if document["vocabulary"] else None
    rows["context length"] = document["context_length"]
    rows["parameters"] = document["parameters"]
    rows["stored"] = f"{_by_dtype(document['bytes_by_dtype'], as_bytes)} (from {document['dtype_source']})"
    if qlora := document["qlora"]:
        in_4_bits = f"{as_count(qlora['parameters'])} parameters in nf4, the others in 16 bits"
        rows["for QLoRA"] = f"{as_bytes(qlora['bytes'])}: {in_4_bits}"
    if cache := document["kv_cache_bytes_per_token"]:
        rows["KV cache"] = f"{as_count(cache)} bytes a token in {document['kv_cache_dtype']}"
    return rows


def _feed_forward(part: Document) -> str:
    if not part["size"]:
        return f"activation {part['activation']}"
    ratio = f" ({part['ratio']:.2f} × hidden)" if part["ratio"] else ""
    gated = {True: "gated, three matrices", False: "two matrices", None: ""}[part["gated"]]
    pieces = (f"{as_count(part['size'])} wide{ratio}", gated, part["activation"])
    return ", ".join(piece for piece in pieces if piece)


def _norms(norms: Document | None) -> str | None:
    if norms is None:
        return None
    final = ", and one behind the last layer" if norms["final"] else ""
    own = "; queries and keys are normed too" if norms["queries_and_keys"] else ""
    return f"{norms['kind']} {norms['place']}{final}{own}"


def _positions(found: Document) -> dict[str, object]:
    rows: dict[str, object] = {"kind": found["kind"].replace("_", " "), "applied": found["applied"]}
    if found["theta"] is not None:
        theta = found["theta"]
        by_kind = theta.items() if isinstance(theta, Mapping) else [("", theta)]
        rows["theta"] = " · ".join(f"{as_count(value)} {kind.replace('_', ' ')}".strip() for kind, value in by_kind)
    if found["turned_share"] not in (None, 1):
        rows["turned"] = f"{as_share(found['turned_share'])} of each head"
    if found["scaling"]:
        rows["scaling"] = " · ".join(f"{key} {_short(value)}" for key, value in found["scaling"].items())
    if found["limit"]:
        rows["limit"] = f"{as_count(found['limit'])} positions: the table has no more rows"
    for number, sentence in enumerate(found["evidence"]):
        rows["evidence" if not number else " " * number] = sentence
    return rows


def _short(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else str(value)


def _sizes(document: Document) -> RenderableType:
    """Parameters by part, with the dtype map."""
    whole = document["parameters"]
    rows = [
        (part.replace("_", "-"), as_count(size), as_share(size, whole), " · ".join(document["dtypes"][part]))
        for part, size in document["parameters_by_part"].items()
    ]
    return text_table("parameters", ("part", ">parameters", ">share", "dtype"), rows)


def _layers(document: Document, *, every: bool) -> Iterator[RenderableType]:
    stacks = len(document["stacks"]) > 1
    for _, alike in itertools.groupby(document["layers"], id if every else _kind_of_layer):
        group = list(alike)
        first, last = group[0], group[-1]
        owner = f"{first['stack']} " if stacks else ""
        sizes = {layer["parameters"] for layer in group}
        size = "–".join(map(as_count, sorted({min(sizes), max(sizes)})))
        if first is last:
            title = f"{owner}layer {first['index']}: {size} parameters"
        else:
            span = f"{owner}layers {first['index']}–{last['index']}"
            title = f"{span}: the same {len(first['modules'])} modules each, {size} parameters a layer"
        yield text_table(title, LAYER_HEADINGS, map(_module, first["modules"]))
    if document["outside"]:
        yield text_table("outside the layers", LAYER_HEADINGS, map(_module, document["outside"]))


def _kind_of_layer(layer: Document) -> tuple[object, ...]:
    keys = ("name", "shape", "dtype", "lora_parameters")
    return (layer.get("stack"), *(tuple(str(module[key]) for key in keys) for module in layer["modules"]))


def _module(module: Document) -> tuple[str, ...]:
    lora = module["lora_parameters"]
    return (
        module["name"],
        _shape(module),
        as_count(module["parameters"]),
        module["dtype"],
        as_bytes(module["bytes"]),
        "–" if not lora else as_count(lora),
    )


def _lora(lora: Document) -> dict[str, object]:
    rank = lora["rank"] if isinstance(lora["rank"], int) else "ranks " + ", ".join(map(str, lora["rank"]))
    layers = " · ".join(f"{stack} {as_span(indices)}" for stack, indices in lora["layers"].items())
    rows: dict[str, object] = {"counted for": lora["source"], "r": rank, "modules": lora["modules"], "layers": layers}
    rows["parameters"] = lora["parameters"]
    if lora["saved"]:
        rows["trained whole"] = f"{listed(lora['saved'])} ({as_count(lora['saved_parameters'])} parameters)"
    rows["share of all"] = as_share(lora["trained_share"])
    return rows

"""The document of `inspect-layers` as a person reads it.

It draws what `--json` prints. Equal layers are one group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from loraft.cli.text_tables import Column, as_bytes, as_count, as_share, as_span, facts, text_table
from loraft.cli.views.adapters_view import adapters_view

Document = Mapping[str, Any]

WIDE = 20
"""The label column of the sections, so that all of them line up."""
LAYER_COLUMNS: Sequence[Column] = (
    ("module", False), ("shape", False), ("parameters", True), ("dtype", False), ("bytes", True), ("LoRA", True)
)  # fmt: skip
SHARING = {
    "MHA": "each query head has a key/value head of its own",
    "GQA": "several query heads share a key/value head",
    "MQA": "all query heads share one key/value head",
}


def layers_view(document: Document, *, every: bool) -> list[RenderableType]:
    """The whole document.

    Args:
        document: What `--json` prints.
        every: Show every layer and module, not only groups and the most moved.
    """
    parts: list[RenderableType] = []
    if "model_type" in document:
        parts += [
            facts("model", _model(document), label_width=WIDE),
            facts("positions", _positions(document["position_encoding"]), label_width=WIDE),
            _sizes(document),
            *_layers(document, every=every),
        ]
        if document["lora"]:
            parts.append(facts("LoRA", _lora(document), label_width=WIDE))
    return parts + adapters_view(document, every=every)


def _model(document: Document) -> dict[str, object]:
    heads, shared = document["num_attention_heads"], document["num_key_value_heads"]
    rows: dict[str, object] = {"name": document["model"], "type": f"{document['model_type']} ({document['kind']})"}
    rows["class"] = document["architecture"]
    for stack in document["stacks"]:
        bare = "" if stack["path"] == stack["bare_path"] else f" (on a bare AutoModel: {stack['bare_path']})"
        rows[f"{stack['name']} layers"] = f"{stack['layers']} × {stack['layer_class']} at {stack['path']}{bare}"
    rows["hidden size"] = document["hidden_size"]
    if heads:
        window = document["sliding_window"]
        rows["attention"] = (
            f"{document['attention']}: {heads} query heads, {shared} key/value heads of {document['head_size']}; "
            f"{SHARING[document['attention']]}"
        )
        if window:
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
    rows["stored"] = f"{_by_dtype(document['bytes_by_dtype'])} (from {document['dtype_source']})"
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


def _by_dtype(sizes: Mapping[str, int]) -> str:
    return " · ".join(f"{as_bytes(size)} in {dtype}" for dtype, size in sizes.items())


def _positions(found: Document) -> dict[str, object]:
    rows: dict[str, object] = {"kind": found["kind"].replace("_", " "), "applied": found["applied"]}
    if found["theta"] is not None:
        theta = found["theta"]
        by_kind = theta.items() if isinstance(theta, Mapping) else [("", theta)]
        rows["theta"] = " · ".join(f"{as_count(value)} {kind.replace('_', ' ')}".strip() for kind, value in by_kind)
    if found["turned_share"] not in (None, 1):
        rows["turned"] = f"{as_share(found['turned_share'], 1)} of each head"
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
    return text_table("parameters", (("part", False), ("parameters", True), ("share", True), ("dtype", False)), rows)


def _layers(document: Document, *, every: bool) -> Iterator[RenderableType]:
    stacks = len(document["stacks"]) > 1
    for group in _groups(document["layers"], every=every):
        first, last = group[0], group[-1]
        owner = f"{first['stack']} " if stacks else ""
        sizes = sorted({layer["parameters"] for layer in group})
        size = "–".join(as_count(each) for each in dict.fromkeys((sizes[0], sizes[-1])))
        if first is last:
            title = f"{owner}layer {first['index']}: {size} parameters"
        else:
            span = f"{owner}layers {first['index']}–{last['index']}"
            title = f"{span}: the same {len(first['modules'])} modules each, {size} parameters a layer"
        yield text_table(title, LAYER_COLUMNS, map(_module, first["modules"]))
    if document["outside"]:
        yield text_table("outside the layers", LAYER_COLUMNS, map(_module, document["outside"]))


def _groups(layers: Sequence[Document], *, every: bool) -> Iterable[list[Document]]:
    """Neighbours with equal modules; each alone where every one is asked for."""
    if every:
        return [[layer] for layer in layers]
    return [list(group) for _, group in itertools.groupby(layers, _likeness_of_layer)]


def _likeness_of_layer(layer: Document) -> tuple[object, ...]:
    keys = ("name", "shape", "dtype", "lora_parameters")
    return (layer.get("stack"), *(tuple(str(module[key]) for key in keys) for module in layer["modules"]))


def _module(module: Document) -> tuple[str, ...]:
    lora = module["lora_parameters"]
    return (
        module["name"],
        " × ".join(as_count(size) for size in module["shape"]),
        as_count(module["parameters"]),
        module["dtype"],
        as_bytes(module["bytes"]),
        "–" if not lora else as_count(lora),
    )


def _lora(document: Document) -> dict[str, object]:
    lora = document["lora"]
    rank = lora["rank"] if isinstance(lora["rank"], int) else "ranks " + ", ".join(map(str, lora["rank"]))
    layers = " · ".join(f"{stack} {as_span(indices)}" for stack, indices in lora["layers"].items())
    rows: dict[str, object] = {
        "counted for": lora["source"],
        "r": rank,
        "modules": lora["modules"],
        "layers": layers,
        "parameters": lora["parameters"],
    }
    if lora["saved"]:
        rows["trained whole"] = f"{', '.join(lora['saved'])} ({as_count(lora['saved_parameters'])} parameters)"
    rows["share of all"] = as_share(lora["trained_share"], 1)
    return rows

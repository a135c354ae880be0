"""What adapters changed, as a person reads it.

It works on what `--json` prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from loraft.cli.text_tables import Column, as_count, as_measure, as_share, as_span, facts, text_table

Document = Mapping[str, Any]

WIDE = 20
MOST_ROWS = 12
"""Layers that are shown where not every one is asked for."""


def adapters_view(document: Document, *, every: bool) -> list[RenderableType]:
    """The adapters of the document, and how alike each two of them are.

    Args:
        document: What `--json` prints.
        every: Show every layer and module, not only the most moved.
    """
    parts: list[RenderableType] = []
    for adapter in document.get("adapters", ()):
        parts += _adapter(adapter, every=every)
    for likeness in document.get("likenesses", ()):
        parts += _likeness(likeness, every=every)
    return parts


def _adapter(adapter: Document, *, every: bool) -> Iterator[RenderableType]:
    title = f"adapter {adapter['name']}"
    rows: dict[str, object] = {
        "folder": adapter["folder"],
        "names the base": adapter["base"],
        "kind": f"{adapter['kind']}, r {', '.join(map(str, adapter['ranks']))}, alpha {as_count(adapter['alpha'])}",
        "holds": f"{as_count(adapter['parameters'])} numbers: {_numbers(adapter['dtypes'])}",
        "‖ΔW‖": _measure(adapter["norm"]),
    }
    if adapter["relative"] is not None:
        rows["‖ΔW‖ / ‖W‖"] = as_share(adapter["relative"], 1)
    rows["dead modules"] = _some(adapter["dead"], "B is zero there: nothing was learned") or "none"
    rows["not finite"] = _some(adapter["non_finite"], "NaN or infinity: it cannot be used") or "none"
    if adapter["unread"]:
        rows["not understood"] = _some(adapter["unread"], "")
    yield facts(title, rows, label_width=WIDE)
    if adapter["saved"]:
        columns = (("trained whole", False), ("shape", False), ("‖ΔW‖", True), ("of ‖W‖", True))
        yield text_table(f"{title}: trained whole", columns, map(_saved, adapter["saved"]))
    yield from _moves(title, adapter, every=every)


def _moves(title: str, adapter: Document, *, every: bool) -> Iterator[RenderableType]:
    relative = adapter["relative"] is not None
    by = "relative" if relative else "norm"
    layers = adapter["layers"] if every else sorted(adapter["layers"], key=lambda layer: -(layer[by] or 0))[:MOST_ROWS]
    most = max((layer[by] or 0 for layer in adapter["layers"]), default=0)
    words = "layers" if every else f"the {len(layers)} layers that moved most, of {len(adapter['layers'])}"
    columns: list[Column] = [("layer", False), ("‖ΔW‖", True), ("of ‖W‖", True), ("", False)]
    rows = [
        (_layer_name(layer), as_measure(layer["norm"]), _share(layer["relative"]), _bar(layer[by], most))
        for layer in layers
    ]
    if rows:
        yield text_table(f"{title}: {words}", columns, rows)
    yield from _kinds(title, adapter) if not every else _every_module(title, adapter)


def _kinds(title: str, adapter: Document) -> Iterator[RenderableType]:
    """The modules of one name together: how far they moved at least, at most, and in how many directions."""
    by_name: dict[str, list[Document]] = {}
    for module in adapter["modules"]:
        if module["finite"]:
            by_name.setdefault(module["name"], []).append(module)
    rows = []
    for name, group in by_name.items():
        farthest = max(group, key=lambda module: module["relative"] or module["norm"])
        ranks = [module["effective_rank"] for module in group]
        where = "" if farthest["index"] is None else _layer_name(farthest)
        rows.append(
            (
                name,
                as_count(len(group)),
                as_measure(sum(module["norm"] for module in group) / len(group)),
                _share(_mean([module["relative"] for module in group])),
                f"{_how_far(farthest)} in {where}" if where else "",
                f"{min(ranks):.1f}–{max(ranks):.1f} of {as_span(sorted({module['rank'] for module in group}))}",
            )
        )
    columns = (("module", False), ("count", True), ("mean ‖ΔW‖", True), ("of ‖W‖", True), ("farthest", False),
               ("effective rank", False))  # fmt: skip
    if rows:
        yield text_table(f"{title}: by module", columns, rows)


def _every_module(title: str, adapter: Document) -> Iterator[RenderableType]:
    columns = (("module", False), ("r", True), ("‖ΔW‖", True), ("of ‖W‖", True), ("effective rank", True), ("", False))
    rows = [
        (
            module["path"],
            str(module["rank"]),
            _measure(module["norm"]),
            _share(module["relative"]),
            "–" if module["effective_rank"] is None else f"{module['effective_rank']:.1f}",
            "not finite" if not module["finite"] else "dead" if module["dead"] else "",
        )
        for module in adapter["modules"]
    ]
    yield text_table(f"{title}: modules", columns, rows)


def _likeness(likeness: Document, *, every: bool) -> Iterator[RenderableType]:
    title = f"{likeness['one']} and {likeness['other']}"
    yield facts(title, {"cosine of updates": _cosine(likeness["cosine"])}, label_width=WIDE)
    layers = likeness["layers"]
    words = "by layer"
    if len(layers) > MOST_ROWS and not every:
        layers = sorted(layers, key=lambda layer: layer["cosine"] or 0)[:MOST_ROWS]
        words = f"the {MOST_ROWS} layers that are least alike, of {len(likeness['layers'])}"
    rows = [(_layer_name(layer), _cosine(layer["cosine"])) for layer in layers]
    yield text_table(f"{title}: {words}", (("layer", False), ("cosine", True)), rows)
    if every:
        modules = [(module["path"], _cosine(module["cosine"])) for module in likeness["modules"]]
        yield text_table(f"{title}: by module", (("module", False), ("cosine", True)), modules)


def _layer_name(row: Document) -> str:
    return f"{row['stack']} {row['index']}"


def _numbers(dtypes: Mapping[str, int]) -> str:
    return " · ".join(f"{as_count(count)} in {dtype}" for dtype, count in dtypes.items())


def _some(names: Sequence[str], meaning: str) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{rest}{f' ({meaning})' if meaning else ''}"


def _saved(row: Document) -> tuple[str, ...]:
    shape = " × ".join(as_count(size) for size in row["shape"])
    return row["name"], shape, _measure(row["norm"]) if row["finite"] else "not finite", _share(row["relative"])


def _measure(value: float | None) -> str:
    return "–" if value is None else as_measure(value)


def _share(value: float | None) -> str:
    return "–" if value is None else as_share(value, 1)


def _how_far(move: Document) -> str:
    return _measure(move["norm"]) if move["relative"] is None else _share(move["relative"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _bar(part: float | None, whole: float) -> str:
    return "━" * max(1, round(20 * part / whole)) if part and whole else ""

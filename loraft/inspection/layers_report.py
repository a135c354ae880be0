"""What `inspect-layers` tells: a model, what LoRA would train in it, and what adapters changed.

This module puts the answers together and says them as JSON has them. It refuses to find anything out itself, and to
know how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from loraft.adapters.lora_factors import AdapterReader, open_adapter
from loraft.adapters.metadata import AdapterTarget, ResolvedTarget
from loraft.adapters.resolve_target import classes_of, resolve_to_look
from loraft.config.sections import LoraSection
from loraft.errors import ModelError
from loraft.inspection.adapter_deltas import AdapterUpdates, Likeness, adapter_updates, likeness
from loraft.inspection.layers import Adapted, ModelTable, model_table
from loraft.models.safetensors_index import fingerprint


@dataclass(frozen=True, eq=False)
class LayersReport:
    """A model and its adapters, looked at.

    Attributes:
        base: The model's name; empty where there are only adapters.
        table: The model; None where it is not at hand.
        adapters: What each adapter changed.
        likenesses: How alike each two of them are.
        notes: What a person should know, a sentence each.
    """

    base: str
    table: ModelTable | None
    adapters: tuple[AdapterUpdates, ...]
    likenesses: tuple[Likeness, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        document: dict[str, Any] = {"model": self.base or None}
        if self.table is not None:
            document |= _model(self.table)
        if self.adapters:
            document["adapters"] = [_adapter(adapter) for adapter in self.adapters]
            document["likenesses"] = [_likeness(each) for each in self.likenesses]
        return document | {"notes": list(self.notes)}


def inspect_layers(
    target: str | None,
    adapters: Sequence[str] = (),
    *,
    base_model: str | None = None,
    lora: LoraSection | None = None,
) -> LayersReport:
    """Look at what `target`, `adapters` and `base_model` mean.

    Args:
        target: A base model, an adapter, a run, a checkpoint or a config; beside `adapters` it may be one more of them.
        adapters: Adapters, `NAME=DIR` or `DIR`.
        base_model: The base, whatever the adapters name.
        lora: What LoRA is to be counted for.

    Raises:
        InvalidInputError: Something cannot be found or looked into.
    """
    found = resolve_to_look(target, adapters, base_model=base_model)
    with ExitStack() as files:
        opened = [(each, files.enter_context(open_adapter(each.folder))) for each in found.adapters]
        table, notes = _table(found, opened, lora, insists=base_model is not None)
        updates = tuple(adapter_updates(each.name, each.base, file, table) for each, file in opened)
        named = [(each.name, file) for each, file in opened]
        pairs = [(pair, likeness(*pair, table)) for pair in combinations(named, 2)]
    apart = (f"{one[0]} and {other[0]} adapt no module in common" for (one, other), alike in pairs if alike is None)
    alike = tuple(each for _, each in pairs if each is not None)
    return LayersReport(found.base, table, updates, alike, (*found.notes, *notes, *apart))


def _table(
    found: ResolvedTarget,
    opened: Sequence[tuple[AdapterTarget, AdapterReader]],
    lora: LoraSection | None,
    *,
    insists: bool,
) -> tuple[ModelTable | None, tuple[str, ...]]:
    """The base, where it is at hand: an adapter is looked at without it all the same."""
    if not found.base:
        return None, ("What is relative to the base is left out.",)
    adapted = None
    if opened:
        each, file = opened[0]
        adapted = Adapted(each.name, file.ranks, file.saved, bool(file.declared.get("use_dora")))
    model = replace(found, adapters=()).model
    try:
        table = model_table(model, lora, adapted, classes_of(found) if opened else ())
    except ModelError as error:
        if not opened or insists:
            raise
        return None, (f"The base {found.base} is not at hand, and what is relative to it is left out: {error}",)
    return table, (*table.notes, *_other_weights(table, found.adapters))


def _other_weights(table: ModelTable, adapters: Sequence[AdapterTarget]) -> tuple[str, ...]:
    """Where a base was recorded that this is not, what is relative to it means little."""
    recorded = {each.name: each.fingerprint for each in adapters if each.fingerprint is not None}
    if not recorded or not table.storage.headers:
        return ()
    here = fingerprint(next(iter(table.storage.headers.values())).file.parent)
    return tuple(
        f"The adapter {name} was trained on other base weights than these: what is relative to them misleads."
        for name, wanted in recorded.items()
        if wanted != here
    )


def _model(table: ModelTable) -> dict[str, Any]:
    anatomy = table.anatomy
    depths = {f"{stack.name}_layers": stack.layers for stack in anatomy.stacks}
    attention = anatomy.attention
    two = len(anatomy.stacks) > 1
    document: dict[str, Any] = {
        "model_type": anatomy.model_type,
        "architecture": anatomy.architecture,
        "kind": anatomy.kind,
        **(depths if two else {"num_layers": anatomy.stacks[0].layers}),
        "stacks": [asdict(stack) for stack in anatomy.stacks],
        "hidden_size": anatomy.hidden_size,
        "num_attention_heads": attention.heads if attention else None,
        "num_key_value_heads": attention.key_value_heads if attention else None,
        "attention": attention.kind if attention else None,
        "head_size": attention.head_size if attention else None,
        "sliding_window": attention.window if attention else None,
        "feed_forward": asdict(anatomy.feed_forward)
        | {"ratio": _ratio(anatomy.feed_forward.size, anatomy.hidden_size)},
        "experts": asdict(anatomy.experts) if anatomy.experts else None,
        "norms": asdict(anatomy.norms) if anatomy.norms else None,
        "vocabulary": anatomy.vocabulary,
        "tied_embeddings": anatomy.tied,
        "context_length": anatomy.context_length,
        "position_encoding": asdict(anatomy.positions),
        "parameters": anatomy.parameters,
        "active_parameters": anatomy.active_parameters,
        "parameters_by_part": dict(anatomy.parameters_by_part),
        "dtypes": {part: dict(count) for part, count in anatomy.dtypes.items()},
        "bytes": sum(anatomy.bytes_by_dtype.values()),
        "bytes_by_dtype": dict(anatomy.bytes_by_dtype),
        "dtype_source": anatomy.stored,
        "kv_cache_bytes_per_token": anatomy.kv_cache_bytes,
        "kv_cache_dtype": anatomy.kv_cache_dtype,
        "lora": asdict(table.lora) if table.lora else None,
    }
    layers = [asdict(layer) for layer in table.layers]
    if not two:
        for layer in layers:
            del layer["stack"]
    return document | {"layers": layers, "outside": [asdict(row) for row in table.outside]}


def _ratio(size: int | None, hidden: int | None) -> float | None:
    return round(size / hidden, 2) if size and hidden else None


def _adapter(adapter: AdapterUpdates) -> dict[str, Any]:
    return asdict(adapter) | {"dead": list(adapter.dead), "non_finite": list(adapter.non_finite)}


def _likeness(each: Likeness) -> dict[str, Any]:
    layers = [{"stack": stack, "index": index, "cosine": cosine} for (stack, index), cosine in each.layers.items()]
    modules = [{"path": path, "cosine": cosine} for path, cosine in each.modules.items()]
    return {"one": each.one, "other": each.other, "cosine": each.cosine, "layers": layers, "modules": modules}

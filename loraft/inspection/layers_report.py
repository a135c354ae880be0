"""What `inspect-layers` tells, as JSON has it: a model, what LoRA would train in it, and what adapters changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from loraft.adapters.adapter_reader import AdapterReader, open_adapter
from loraft.adapters.metadata import AdapterTarget, ResolvedTarget
from loraft.adapters.resolve_target import classes_of, resolve_to_look
from loraft.config.sections import LoraSection
from loraft.errors import ModelError
from loraft.inspection.adapter_deltas import AdapterUpdates, Likeness, adapter_updates, likeness
from loraft.inspection.layers import ModelTable, model_table
from loraft.models.remote_code import as_trusted
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
            document["adapters"] = [asdict(adapter) for adapter in self.adapters]
            document["likenesses"] = [_likeness(each) for each in self.likenesses]
        return document | {"notes": list(self.notes)}


@as_trusted
def inspect_layers(
    target: str | None,
    adapters: Sequence[str] = (),
    *,
    base_model: str | None = None,
    lora: LoraSection | None = None,
    trust_remote_code: bool = False,
) -> LayersReport:
    """Look at what `target`, `adapters` and `base_model` mean.

    Args:
        target: A base model, an adapter, a run, a checkpoint or a config; beside `adapters` it may be one more of them.
        adapters: Adapters, `NAME=DIR` or `DIR`.
        base_model: The base, whatever the adapters name.
        lora: What LoRA is to be counted for.
        trust_remote_code: Run the code that the model brings.

    Raises:
        InvalidInputError: Something cannot be found or looked into.
    """
    found = resolve_to_look(target, adapters, base_model=base_model)
    opened = [(each.name, open_adapter(each.folder)) for each in found.adapters]
    table, notes = _table(found, opened, lora, insists=base_model is not None)
    updates = tuple(adapter_updates(each, file, table) for each, (_, file) in zip(found.adapters, opened, strict=True))
    pairs = [(one[0], other[0], likeness(one, other, table)) for one, other in combinations(opened, 2)]
    apart = (f"{one} and {other} adapt no module in common" for one, other, alike in pairs if alike is None)
    alike = tuple(each for *_, each in pairs if each is not None)
    said = (*found.notes, *notes, *apart, *_without_magnitudes(updates))
    return LayersReport(found.base, table, updates, alike, said)


def _without_magnitudes(updates: Sequence[AdapterUpdates]) -> Iterator[str]:
    """What a DoRA changes is told by its base alone: its magnitudes are the lengths of rows of W + ΔW."""
    for adapter in updates:
        if "DoRA" in adapter.kind and adapter.norm is not None and adapter.relative is None:
            yield f"‖ΔW‖ of {adapter.name} is that of B A alone: what DoRA's magnitudes change is told beside the base."


def _table(
    found: ResolvedTarget, opened: Sequence[tuple[str, AdapterReader]], lora: LoraSection | None, *, insists: bool
) -> tuple[ModelTable | None, tuple[str, ...]]:
    """The base, where it is at hand: an adapter is looked at without it all the same."""
    if not found.base:
        return None, ("What is relative to the base is left out.",)
    model = replace(found, adapters=()).model
    try:
        table = model_table(model, lora, next(iter(opened), None), classes_of(found) if opened else ())
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
    """The layers of one stack do not name it."""
    stacks = table.anatomy.stacks
    two = len(stacks) > 1
    facts = asdict(table.anatomy)
    document = {key: facts.pop(key) for key in ("model_type", "architecture", "kind")}
    document |= {f"{stack.name}_layers" if two else "num_layers": stack.layers for stack in stacks}
    layers = [asdict(layer) for layer in table.layers]
    if not two:
        for layer in layers:
            del layer["stack"]
    lora = asdict(table.lora) if table.lora else None
    return document | facts | {"lora": lora, "layers": layers, "outside": [asdict(row) for row in table.outside]}


def _likeness(each: Likeness) -> dict[str, Any]:
    layers = [{"stack": stack, "index": index, "cosine": cosine} for (stack, index), cosine in each.layers.items()]
    modules = [{"path": path, "cosine": cosine} for path, cosine in each.modules.items()]
    return {"one": each.one, "other": each.other, "cosine": each.cosine, "layers": layers, "modules": modules}

"""Which transformer layers `lora.layers` means, in each stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraft.config.sections import StackLayers
from loraft.errors import AdapterError
from loraft.models.registry import ModelSpec


def parse_layers(spec: str | Sequence[int], num_layers: int, owner: str = "the model") -> tuple[int, ...]:
    """The layers that `lora.layers` means, in ascending order: counted from 0, and both ends of a range are in.

    Raises:
        AdapterError: If a layer is asked for that the model does not have; it is said whose layers they are.
    """
    beyond = None
    layers: Sequence[int]
    if not isinstance(spec, str):
        if not spec:
            raise AdapterError("the list is empty", key="lora.layers", remedy="Write all, or the layers to adapt.")
        layers = sorted(set(spec))
        if absent := [str(layer) for layer in layers if not 0 <= layer < num_layers]:
            beyond = f"layer {', '.join(absent)} does not exist"
    elif spec == "all":
        layers = range(num_layers)
    elif ":" in spec:
        word, _, number = spec.partition(":")
        count = int(number)
        start = {"first": 0, "last": num_layers - count, "middle": (num_layers - count) // 2}[word]
        layers, beyond = range(start, start + count), f"{spec} asks for {count} layers" if count > num_layers else None
    else:
        first, last = map(int, spec.split("-"))
        if first > last:
            raise AdapterError(f"the range {spec} runs backwards", key="lora.layers", remedy=f"Write {last}-{first}.")
        layers, beyond = range(first, last + 1), f"{spec} ends at layer {last}" if last >= num_layers else None
    if beyond:
        remedy = f"Layers are numbered 0 to {num_layers - 1}."
        raise AdapterError(f"{beyond}, and {owner} has {num_layers} layers", key="lora.layers", remedy=remedy)
    return tuple(layers)


def layers_by_stack(
    spec: str | Sequence[int] | StackLayers, family: ModelSpec, num_layers: Mapping[str, int]
) -> Mapping[str, tuple[int, ...]]:
    """The layers that `lora.layers` means in each stack: `last:2` is the last two of each."""
    specs = _spec_by_stack(spec, family)
    owners = {stack: f"the {stack}" if len(family.stacks) > 1 else "the model" for stack in family.stacks}
    return {
        stack: () if specs[stack] is None else parse_layers(specs[stack] or (), num_layers[stack], owner)
        for stack, owner in owners.items()
    }


def _spec_by_stack(
    spec: str | Sequence[int] | StackLayers, family: ModelSpec
) -> Mapping[str, str | Sequence[int] | None]:
    """What is asked of each stack; None leaves it without an adapter."""
    if not isinstance(spec, StackLayers):
        return dict.fromkeys(family.stacks, spec)
    asked = {stack: layers for stack, layers in spec if layers is not None}
    if unknown := [stack for stack in asked if stack not in family.stacks]:
        stacks = " and ".join(family.stacks)
        message = f"{' and '.join(unknown)}: {family.model_type} has no such stack, its layers are the {stacks}'s"
        remedy = "Write the layers without naming a stack." if len(family.stacks) == 1 else None
        raise AdapterError(message, key="lora.layers", remedy=remedy)
    if not asked:
        raise AdapterError("names no layers of either stack", key="lora.layers", remedy="Write all, or name a stack.")
    return {stack: asked.get(stack) for stack in family.stacks}

"""What a GGUF file of an adapter alone holds: its low-rank updates, which llama.cpp adds to a base while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from loraft.adapters.lora_factors import LoraFactors
from loraft.adapters.metadata import ResolvedTarget
from loraft.errors import AdapterError
from loraft.exporting.gguf_settings import Value, settings_of
from loraft.exporting.gguf_tensors import GgufTensor, OutType, TensorNames, planned
from loraft.exporting.prepare_export import about_types, base_of, merge_of, name_of
from loraft.exporting.write_gguf import GgufFile
from loraft.merging.merge_plan import MergePlan
from loraft.merging.prepare_merge import Merge
from loraft.models.safetensors_index import Slot

WHOLE = "Leave `adapter_only` out: the whole model has it folded in."


def prepare_adapter(target: ResolvedTarget, weights: Sequence[float], outtype: OutType) -> tuple[GgufFile, Merge]:
    """Find out what a GGUF file of a target's one adapter, multiplied by its weight, holds, and what it adapts.

    Raises:
        InvalidInputError: There is not one adapter, it does not fit its base, or it does more than llama.cpp's LoRA.
    """
    if len(target.adapters) != 1:
        message = f"a GGUF file of adapters alone holds one, and there are {len(target.adapters)}"
        raise AdapterError(message, parameter="adapter_only", remedy=WHOLE)
    config, family, where = base_of(target)
    settings_of(config, family, where)
    merge = merge_of(target, weights, None)
    folder = str(target.adapters[0].folder)
    for what in _beyond(merge.plan):
        raise AdapterError(f"llama.cpp's adapters are low-rank updates alone: it {what}", where=folder, remedy=WHOLE)
    names = TensorNames(family, config.num_hidden_layers, where)
    contents: dict[str, Tensor] = {}
    tensors: list[GgufTensor] = []
    alpha = float(merge.adapters[0].files.config.lora_alpha) or 1.0  # which llama.cpp takes a zero for
    for weight, (update,) in merge.plan.updates.items():
        name = names.of(weight)
        for part, numbers in _parts(update, alpha):
            slot = Slot(weight if part == "b" else "", "F32", tuple(numbers.shape))
            tensor = planned(slot, f"{name}.lora_{part}", outtype, family, config)
            tensors.append(tensor)
            contents[tensor.name] = numbers
    values: dict[str, Value] = {
        "general.architecture": family.architecture,
        "general.type": "adapter",
        "general.name": name_of(target),
        "general.quantization_version": 2,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    notes = (*merge.notes, *_about_base(merge), *about_types(tensors, outtype))
    return GgufFile(values, tensors, lambda tensor, _: [contents[tensor.name]], notes), merge


def _parts(update: LoraFactors, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """A and B: llama.cpp multiplies their product by alpha / r, and what scales it otherwise is in B."""
    yield "a", update.a.float()
    yield "b", update.b.float() * (update.scale * update.rank / alpha)


def _beyond(plan: MergePlan) -> Iterator[str]:
    """What an adapter does besides low-rank updates of matrices."""
    updates = [update for several in plan.updates.values() for update in several]
    if any(update.magnitude is not None for update in updates):
        yield "is a DoRA"
    if plan.replaced:
        yield f"has {min(plan.replaced)}, which was trained whole"
    if plan.rows:
        yield "has rows of embeddings that were trained"
    if plan.added:
        yield "has biases that were trained"
    if plan.untied:
        yield f"changes one side of a weight that {min(plan.untied)} shares with another"
    if any(name in plan.transposed for name in plan.updates):
        yield "adapts embeddings"
    if not plan.updates:
        yield "has none"


def _about_base(merge: Merge) -> Iterator[str]:
    if (stored := merge.trained_storage) is not None:
        yield f"the adapter was trained on its base in {stored.words}: on another base file its answers differ"

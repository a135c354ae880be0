"""What merging changes: which tensor of the base gets which update, told from the adapters and an empty model.

It reads no weight of the base: each of its tensors ends in a tensor of the result, or is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.adapter_files import AdapterFiles, refuse_misfit
from loraft.adapters.delta import Update, scale_of
from loraft.adapters.inject import ADAPTER_NAME, add_lora_layers
from loraft.adapters.lora_factors import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from loraft.errors import AdapterError
from loraft.models.auto_model import meta_model
from loraft.models.safetensors_index import expected_tensors


@dataclass(frozen=True, eq=False)
class WeightedAdapter:
    """An adapter, and how much of it is merged.

    Attributes:
        name: What messages call it.
        files: What its folder holds.
        weight: What its update is multiplied by: 1 merges it as it was trained.
    """

    name: str
    files: AdapterFiles
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class MergePlan:
    """What becomes of the base's tensors, by their names in the model.

    Attributes:
        updates: The low-rank updates of a weight.
        replaced: The tensors that an adapter trained whole.
        transposed: The weights that are stored `[in, out]`.
        untied: The tensors that were another's in the base and become their own: name, and whose they were.
    """

    updates: Mapping[str, tuple[Update, ...]]
    replaced: Mapping[str, Tensor]
    transposed: frozenset[str]
    untied: Mapping[str, str]

    @property
    def changes_nothing(self) -> bool:
        """Whether the result is the base, number for number."""
        return not self.replaced and all(update.changes_nothing for each in self.updates.values() for update in each)


def plan_merge(model: PreTrainedModel, adapters: Sequence[WeightedAdapter]) -> MergePlan:
    """Decide what becomes of each tensor of `model`, which has no weights and nothing attached.

    Raises:
        AdapterError: A tensor of an adapter has no place in the base or is missing, adapters that cannot be summed,
            or a tied weight that the architecture cannot have twice.
    """
    _refuse_unsummable(adapters)
    updates: dict[str, list[Update]] = {}
    replaced: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for adapter in adapters:
        _refuse_what_does_not_fit(model, adapter.files)
        for name, found in adapter.files.factors.items():
            update = _update(name, found, modules[name], adapter)
            updates.setdefault(f"{name}.weight", []).append(update)
        replaced |= adapter.files.whole
    transposed = {f"{name}.weight" for name, part in modules.items() if isinstance(part, Conv1D | nn.Embedding)}
    return MergePlan(
        updates={name: tuple(each) for name, each in updates.items()},
        replaced=replaced,
        transposed=frozenset(transposed),
        untied=_untied(model, {*updates, *replaced}, adapters[0]),
    )


def _refuse_unsummable(adapters: Sequence[WeightedAdapter]) -> None:
    """A sum with weights is one of low-rank updates: new lengths and whole modules have no such sum."""
    if len(adapters) == 1 and adapters[0].weight == 1:
        return
    for adapter in adapters:
        shape = adapter.files.shape
        what = "is a DoRA" if shape.use_dora else "has modules that were trained whole" if shape.saved else None
        if what is not None:
            raise AdapterError(
                f"the adapter {adapter.name} {what}, and only low-rank updates can be weighted and summed",
                where=str(adapter.files.folder),
                remedy="Merge it alone, with weight 1.",
            )


def _refuse_what_does_not_fit(model: PreTrainedModel, files: AdapterFiles) -> None:
    """Compare the adapter's tensors with those that peft would want for this base, on the meta device.

    Model and config are copied: peft would leave its layers in the one, and write the base's place into the other.
    """
    config = copy.deepcopy(files.config)
    config.base_model_name_or_path = None
    with torch.device("meta"):
        try:
            wrapped = add_lora_layers(
                copy.deepcopy(model), config, ADAPTER_NAME, where=str(files.folder / ADAPTER_CONFIG)
            )
        except ValueError as error:  # peft's word for targets that match nothing
            raise AdapterError(f"it does not fit the base: {error}", where=str(files.folder)) from error
    refuse_misfit(wrapped, files, ADAPTER_NAME)


def _update(name: str, parts: Mapping[str, Tensor], module: nn.Module, adapter: WeightedAdapter) -> Update:
    shape, where = adapter.files.shape, str(adapter.files.folder / ADAPTER_WEIGHTS)
    is_embedding = isinstance(module, nn.Embedding)
    if not isinstance(module, nn.Linear | Conv1D | nn.Embedding) or (is_embedding and "magnitude" in parts):
        what = f"DoRA on {name}" if is_embedding else f"an update of {name}, a {type(module).__name__},"
        raise AdapterError(f"{what} cannot be merged", where=where)
    scale = adapter.weight * scale_of(shape.alphas[name], shape.ranks[name], use_rslora=shape.use_rslora)
    return Update(parts["A"], parts["B"], scale, parts.get("magnitude"))


def _untied(model: PreTrainedModel, changed: set[str], adapter: WeightedAdapter) -> dict[str, str]:
    """The ties that the merge breaks: one of two modules with one weight changes, and the other does not.

    Raises:
        AdapterError: The architecture has no form without the tie.
    """
    ties = model.all_tied_weights_keys
    broken = {name: source for name, source in ties.items() if name in changed or source in changed}
    if not broken:
        return {}
    # Through the words of config.json, since T5 reads another meaning into this one and ties all the same.
    config = type(model.config).from_dict({**model.config.to_dict(), "tie_word_embeddings": False})
    own = expected_tensors(meta_model(config)).keys()
    if stuck := sorted(broken.keys() - own):
        raise AdapterError(
            f"the adapter changes one side of a weight that {broken[stuck[0]]} and {stuck[0]} share, "
            f"and {model.config.model_type} has no form with two",
            where=str(adapter.files.folder),
            remedy="Use it unmerged: `loraft.generate` with `adapters`.",
        )
    return {name: source for name, source in ties.items() if name in own}

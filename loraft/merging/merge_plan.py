"""What merging changes: which tensor of the base gets which update, told from the adapters and an empty model.

It reads no weight of the base: each of its tensors ends in a tensor of the result, or is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.adapted_parameters import AdaptedParameter, adapted_parameters
from loraft.adapters.adapter_files import AdapterFiles, refuse_misfit
from loraft.adapters.effect import require_foldable
from loraft.adapters.lora_factors import ADAPTER_NAME, ADAPTER_WEIGHTS, LoraFactors
from loraft.adapters.save_adapter import with_layers
from loraft.errors import AdapterError
from loraft.models.auto_model import meta_model
from loraft.models.modules import modules_of
from loraft.models.safetensors_index import expected_tensors


@dataclass(frozen=True, eq=False)
class WeightedAdapter:
    """An adapter with the name that messages have for it, and what its update is multiplied by."""

    name: str
    files: AdapterFiles
    weight: float


@dataclass(frozen=True, eq=False)
class MergePlan:
    """What becomes of the base's tensors, by their names in the model.

    Attributes:
        updates: The low-rank updates of a weight.
        added: What is added to a bias.
        rows: Which rows of a weight are replaced, and by what.
        replaced: The tensors that an adapter trained whole.
        transposed: The weights that are stored `[in, out]`.
        untied: The tensors that were another's in the base and become their own: name, and whose they were.
    """

    updates: Mapping[str, Sequence[LoraFactors]]
    added: Mapping[str, Sequence[Tensor]]
    rows: Mapping[str, tuple[Sequence[int], Tensor]]
    replaced: Mapping[str, Tensor]
    transposed: Collection[str]
    untied: Mapping[str, str]

    @property
    def changes_nothing(self) -> bool:
        """Whether the result is the base, number for number."""
        if self.replaced or self.rows or any(bool(bias.any()) for each in self.added.values() for bias in each):
            return False
        return all(update.changes_nothing for each in self.updates.values() for update in each)

    @property
    def changed(self) -> list[str]:
        """The tensors that the merge computes, by their names in the model."""
        return list(dict.fromkeys([*self.replaced, *self.rows, *self.updates, *self.added]))


def plan_merge(model: PreTrainedModel, adapters: Sequence[WeightedAdapter], held: Collection[str]) -> MergePlan:
    """Decide what becomes of each tensor of `model`, which has no weights; `held` are those of the base's files.

    Without adapters each stays as it is.

    Raises:
        AdapterError: A tensor of an adapter has no place in the base or is missing, adapters that cannot be summed,
            or a tied weight that the architecture cannot have twice.
    """
    _refuse_unsummable(adapters)
    updates: dict[str, list[LoraFactors]] = {}
    added: dict[str, list[Tensor]] = {}
    rows: dict[str, tuple[Sequence[int], Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    transposed = {f"{name}.weight" for name in modules_of(model, Conv1D, nn.Embedding)}
    for adapter in adapters:
        parameters = _parameters_that_fit(model, adapter.files)
        for place, parts in adapter.files.updates.items():
            name, update = f"{place}.weight", adapter.files.factors(place)
            if (of := parameters.get(place)) is not None:
                name, update = of.name, replace(update, scale=of.scale, experts=of.experts)
                transposed = transposed | {name} if of.transposed else transposed - {name}
            else:
                file = adapter.files.folder / ADAPTER_WEIGHTS
                require_foldable(place, modules[place], dora="magnitude" in parts, where=file)
            update = replace(update, scale=adapter.weight * update.scale)
            updates.setdefault(name, []).append(update)
            if "bias" in parts:
                bias = _added(place, parts["bias"], modules[place], update.scale, adapter)
                added.setdefault(f"{place}.bias", []).append(bias)
        replaced |= adapter.files.whole
        rows |= adapter.files.tokens
    untied = _untied(model, {*updates, *replaced}, adapters)
    if absent := sorted(expected_tensors(model).keys() - {*held, *replaced}):
        raise AdapterError(f"neither it nor its base has {', '.join(absent)}", where=adapters[0].files.folder)
    return MergePlan(updates, added, rows, replaced, transposed, untied)


def _refuse_unsummable(adapters: Sequence[WeightedAdapter]) -> None:
    """A sum with weights is one of low-rank updates: new lengths and whole modules have no such sum."""
    if len(adapters) == 1 and adapters[0].weight == 1:
        return
    for adapter in adapters:
        files = adapter.files
        kinds = (
            ("is a DoRA", files.config.use_dora),
            ("has modules that were trained whole", files.saved),
            ("has biases that were trained", files.biases),
            ("has rows of embeddings that were trained", files.tokens),
        )
        if what := next((kind for kind, is_so in kinds if is_so), None):
            message = f"the adapter {adapter.name} {what}, and only low-rank updates can be weighted and summed"
            remedy = "Merge it alone, with weight 1."
            raise AdapterError(message, where=adapter.files.folder, remedy=remedy)


def _parameters_that_fit(model: PreTrainedModel, files: AdapterFiles) -> Mapping[str, AdaptedParameter]:
    """The parameters that an adapter adapts by themselves, by the places of their factors.

    The adapter's tensors are compared with those that peft would want for this base, on the meta device.

    Model and config are copied: peft would leave its layers in the one, and write the base's place into the other.
    """
    config = copy.deepcopy(files.config)
    config.base_model_name_or_path = None
    with torch.device("meta"):
        wrapped = with_layers(copy.deepcopy(model), replace(files, config=config), ADAPTER_NAME)
    refuse_misfit(wrapped, files, ADAPTER_NAME)
    return adapted_parameters(wrapped)


def _added(place: str, bias: Tensor, module: nn.Module, scale: float, adapter: WeightedAdapter) -> Tensor:
    """What the bias of B adds to that of the module."""
    if module.bias is None:
        message = f"its update of {place} has a bias (lora_bias), and the module has none to add it to"
        remedy = "Use it unmerged: `loraft.generate` with `adapters`."
        raise AdapterError(message, where=adapter.files.folder / ADAPTER_WEIGHTS, remedy=remedy)
    return scale * bias.float()


def _untied(model: PreTrainedModel, changed: set[str], adapters: Sequence[WeightedAdapter]) -> dict[str, str]:
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
        message = (
            f"the adapter changes one side of a weight that {broken[stuck[0]]} and {stuck[0]} share, "
            f"and {model.config.model_type} has no form with two"
        )
        remedy = "Use it unmerged: `loraft.generate` with `adapters`."
        raise AdapterError(message, where=adapters[0].files.folder, remedy=remedy)
    return {name: source for name, source in ties.items() if name in own}

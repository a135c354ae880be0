"""Which of the adapters in a model acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.delta import Update, updated
from loraft.adapters.inject import AdaptedModel
from loraft.adapters.lora_factors import in_peft
from loraft.errors import AdapterError
from loraft.models.modules import output_head
from loraft.models.quantize import ordinary, unpacked


@contextmanager
def acting(model: nn.Module, name: str | None) -> Iterator[nn.Module]:
    """The model with the adapter `name` active, or with none of them; afterwards as it was.

    A model without adapters is left alone.
    """
    if not isinstance(model, PeftModel):
        yield model
        return
    active, on = model.active_adapter, _is_on(model)
    # peft makes whatever it switches on trainable, and whatever it switches off not.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        _switch(model, active if name is None else in_peft(name), on=name is not None)
        yield model
    finally:
        _switch(model, active, on=on)
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def _switch(model: PeftModel, name: str, *, on: bool) -> None:
    if name != model.active_adapter:
        model.set_adapter(name)
    tuner: Any = model.base_model
    if on and not _is_on(model):
        tuner.enable_adapter_layers()
    elif not on and _is_on(model):
        tuner.disable_adapter_layers()


def _is_on(model: PeftModel) -> bool:
    return not any(module.disable_adapters for module in model.modules() if isinstance(module, BaseTunerLayer))


def act_together(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Let several adapters of a model act at once from now on, each update multiplied by its weight."""
    assert isinstance(model, PeftModel), "a model without adapters has none to act"
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in weights.items():
                if in_peft(name) in module.scaling:
                    module.scaling[in_peft(name)] *= weight
    tuner: Any = model.base_model
    tuner.set_adapter([in_peft(name) for name in weights])  # the wrapper's own method takes one name
    model.requires_grad_(False)


def merged(adapted: AdaptedModel, name: str | None = None) -> PreTrainedModel:
    """The base with an adapter in its weights, and no peft around it; `adapted` is used up.

    Modules in 4 bits become ordinary ones, whose weight is the dequantized one with the update. A tied weight that only
    one side changes is tied no more.

    Args:
        adapted: A base with adapters, or a model that was trained whole, which is given back as it is.
        name: Which of its adapters; None is the first one.

    Raises:
        AdapterError: A module that cannot be merged.
    """
    model = adapted.model
    if not isinstance(model, PeftModel):
        return model
    name = adapted.names[0] if name is None else name
    with acting(model, name), torch.no_grad():
        for path, module in list(model.get_base_model().named_modules()):
            if isinstance(module, LoraLayer) and _has(module, in_peft(name)):
                _fold(path, module, in_peft(name))
        base: PreTrainedModel = model.unload()
    _tell_the_config(base)
    base.train(False)
    return base


def _has(module: Any, name: str) -> bool:
    return name in module.lora_A or name in module.lora_embedding_A


def _fold(path: str, module: Any, name: str) -> None:
    """Give the module inside a LoRA layer the merged weight, as a parameter of its own."""
    inner = module.get_base_layer()
    if not isinstance(inner, nn.Linear | Conv1D | nn.Embedding):
        raise AdapterError(f"an update of {path}, a {type(inner).__name__}, cannot be merged")
    if isinstance(inner, nn.Embedding):
        if name in module.lora_magnitude_vector:
            raise AdapterError(f"DoRA on {path} cannot be merged")
        update = Update(module.lora_embedding_A[name], module.lora_embedding_B[name], module.scaling[name])
        inner.weight = _frozen(updated(inner.weight, [update], transposed=True))
        return
    magnitude = module.lora_magnitude_vector[name].weight if name in module.lora_magnitude_vector else None
    update = Update(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], magnitude)
    weight = updated(unpacked(inner), [update])
    if isinstance(inner, Conv1D):
        inner.weight = _frozen(weight.T.contiguous())
    elif inner.weight.dtype == torch.uint8:
        module.base_layer = ordinary(inner, weight)
    else:
        inner.weight = _frozen(weight)


def _frozen(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _tell_the_config(base: PreTrainedModel) -> None:
    """A config that says `tied` of weights that are not would tie them again on the next occasion."""
    head: Any = output_head(base)
    if head is not None and head.weight is not base.get_input_embeddings().weight:
        base.config.tie_word_embeddings = False

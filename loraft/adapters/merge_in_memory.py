"""An adapter folded into the base that it is loaded on: the same arithmetic as merging files, on the model itself.

Where memory is there it saves the two skinny products a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.active import acting
from loraft.adapters.delta import Update, updated
from loraft.adapters.inject import AdaptedModel
from loraft.adapters.peft_names import in_peft
from loraft.errors import AdapterError
from loraft.models.modules import output_head
from loraft.models.quantize import ordinary, unpacked


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

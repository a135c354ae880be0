"""Linear modules of some architectures that peft takes for others by their names: as it adapts, and as it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import transformers_weight_conversion as conversion
from transformers import PreTrainedModel

from loraft.adapters.lora_factors import ADAPTER_NAME
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError, Problem
from loraft.models.modules import linear_modules

OF_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
"""Model types whose output projections a kernel reads as weights, past any adapter: peft refuses them."""


def adaptable_modules(model: PreTrainedModel, lora: LoraSection) -> dict[str, tuple[int, int]]:
    """The linear modules of a model that peft can adapt by their names.

    Raises:
        AdapterError: `lora.target_modules` names others.
    """
    left = _left_by_peft(model)
    named = () if isinstance(lora.target_modules, str) else lora.target_modules
    reasons = {name: left[last] for name in named if (last := name.rpartition(".")[2]) in left}
    if reasons:
        said = [f"{name} cannot be adapted: {why}" for name, why in reasons.items()]
        raise AdapterError.several([Problem(message, None, "lora.target_modules", "Leave it out.") for message in said])
    return {name: size for name, size in linear_modules(model).items() if name.rpartition(".")[2] not in left}


def _left_by_peft(model: PreTrainedModel) -> Mapping[str, str]:
    """The last parts of names that mean no module of this model to peft, and why.

    Source: peft's `_check_lora_target_modules_mamba` and `convert_peft_config_for_transformers`.
    """
    model_type = model.config.model_type
    if model_type in OF_MAMBA:
        return dict.fromkeys(("out_proj", "conv1d"), "the state-space kernel reads its weight past an adapter")
    patterns: Mapping[str, str] = vars(conversion)["_MODEL_TO_CONVERSION_PATTERN"]
    names: Mapping[str, object] = vars(conversion)["_MOE_TARGET_MODULE_MAPPING"].get(patterns.get(model_type), {})
    return dict.fromkeys(names, "peft takes that name for the experts, which are one tensor here")


def unread_by_peft(model: PreTrainedModel, modules: Iterable[str]) -> list[str]:
    """Those of the adapted modules whose tensors peft finds no place for where it reads the adapter; loraft does.

    It renames them as transformers renames the tensors of a base's files.
    """
    names = {f"base_model.model.{module}.lora_A.weight": module for module in modules}
    tensors = dict.fromkeys(names, torch.empty(1, 1, device="meta"))
    convert: Any = conversion.convert_peft_adapter_state_dict_for_transformers
    placed = convert(model, LoraConfig(), tensors, ADAPTER_NAME)
    return [module for name, module in names.items() if name not in placed]

"""Linear modules that peft cannot adapt by their names, in architectures for which it takes the name for another."""

from __future__ import annotations

from collections.abc import Mapping

from peft.utils import transformers_weight_conversion as conversion
from transformers import PreTrainedModel

OF_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
"""Model types whose output projections a kernel reads as weights, past any adapter: peft refuses them."""


def left_by_peft(model: PreTrainedModel) -> Mapping[str, str]:
    """The last parts of names that mean no module of this model to peft, and why.

    Source: peft's `_check_lora_target_modules_mamba` and `convert_peft_config_for_transformers`.
    """
    model_type = model.config.model_type
    if model_type in OF_MAMBA:
        return dict.fromkeys(("out_proj", "conv1d"), "the state-space kernel reads its weight past an adapter")
    patterns: Mapping[str, str] = vars(conversion)["_MODEL_TO_CONVERSION_PATTERN"]
    names: Mapping[str, object] = vars(conversion)["_MOE_TARGET_MODULE_MAPPING"].get(patterns.get(model_type), {})
    return dict.fromkeys(names, "peft takes that name for the experts, which are one tensor here")

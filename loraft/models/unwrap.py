"""The model of transformers inside whatever is wrapped around it."""

from __future__ import annotations

from typing import Protocol, cast

from torch import nn
from transformers import PreTrainedModel


class _Wrapper(Protocol):
    def get_base_model(self) -> nn.Module: ...


def wrapped_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, with its adapters in place, whatever is wrapped around it."""
    if isinstance(model, PreTrainedModel):
        return model
    # peft puts its layers into the model that it wraps, so the inner model alone is the adapted one.
    return cast("PreTrainedModel", cast("_Wrapper", model).get_base_model())

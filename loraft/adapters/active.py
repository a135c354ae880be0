"""Which of the adapters in a model acts.

This module knows how peft switches adapters. It refuses to know where they came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

__all__ = ["act_together", "acting"]


@contextmanager
def acting(model: nn.Module, name: str | None) -> Iterator[nn.Module]:
    """The model with the adapter `name` active, or with none of them; afterwards as it was.

    A model without adapters is left alone.
    """
    if not isinstance(model, PeftModel):
        yield model
    elif name is None:
        with model.disable_adapter():
            yield model
    else:
        before = model.active_adapter
        _activate(model, name)
        try:
            yield model
        finally:
            _activate(model, before)


def _activate(model: PeftModel, name: str) -> None:
    model.set_adapter(name)
    model.requires_grad_(False)  # peft makes the active one trainable


def act_together(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Let several adapters of a model act at once from now on, each update multiplied by its weight."""
    assert isinstance(model, PeftModel), "a model without adapters has none to act"
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in weights.items():
                if name in module.scaling:
                    module.scaling[name] *= weight
    tuner: Any = model.base_model
    tuner.set_adapter(list(weights))  # the wrapper's own method takes one name
    model.requires_grad_(False)

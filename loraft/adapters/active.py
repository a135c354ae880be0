"""Which of the adapters in a model acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from loraft.adapters.peft_names import in_peft


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

"""Which of the adapters in a model acts.

This module knows how peft switches adapters, and that switching makes parameters trainable. It refuses to know
where they came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn

from loraft.adapters.names import in_peft

__all__ = ["acting"]


@contextmanager
def acting(model: nn.Module, name: str | None) -> Iterator[nn.Module]:
    """The model with the adapter `name` active, or with none of them; afterwards as it was.

    A model without adapters is left alone.
    """
    if not isinstance(model, PeftModel):
        yield model
        return
    # peft makes whatever it switches on trainable, and whatever it switches off not.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if name is None:
            with model.disable_adapter():
                yield model
        else:
            with _switched(model, in_peft(name)):
                yield model
    finally:
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _switched(model: PeftModel, name: str) -> Iterator[None]:
    before = model.active_adapter
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)

"""Which of the adapters in a model acts.

This module knows how peft switches adapters. It refuses to know where they came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn

__all__ = ["acting"]


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

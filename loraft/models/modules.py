"""The modules of a model: their names, compared by path parts, the linear ones, and the model inside its wrappers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Protocol, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def matches(module: str, name: str) -> bool:
    """Whether `name` is the full name of `module` or its last path parts."""
    return module == name or module.endswith(f".{name}")


def is_within(module: str, outer: str) -> bool:
    """Whether `module` is `outer` or lies inside it."""
    return module == outer or module.startswith(f"{outer}.")


def nearest(name: str, names: Iterable[str]) -> str:
    """The names most like `name`, or all of them where none is."""
    short = sorted({known.rpartition(".")[2] for known in names})
    close = difflib.get_close_matches(name.rpartition(".")[2], short, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else f"The model has {', '.join(short)}."


def linear_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear module, the head too: (inputs, outputs) by full name; a 4-bit one has the sizes it stands for."""
    return {name: _sizes(part) for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}


def _sizes(module: nn.Linear | Conv1D) -> tuple[int, int]:
    if isinstance(module, Conv1D):  # GPT-2's weight is [inputs, outputs]
        inputs, outputs = module.weight.shape
        return inputs, outputs
    return module.in_features, module.out_features


def parameter_count(model: nn.Module) -> int:
    """The numbers that a model holds: tied ones once, 4-bit ones by what they stand for."""
    packed = {
        id(module.weight): module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight.dtype == torch.uint8
    }
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())


class _Wrapper(Protocol):
    def get_base_model(self) -> nn.Module: ...


def wrapped_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, with its adapters in place, whatever is wrapped around it."""
    if isinstance(model, PreTrainedModel):
        return model
    # peft puts its layers into the model that it wraps, so the inner model alone is the adapted one.
    return cast("PreTrainedModel", cast("_Wrapper", model).get_base_model())


def output_head(model: PreTrainedModel) -> nn.Module | None:
    """The module that makes logits over the vocabulary; None where a model has none."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head

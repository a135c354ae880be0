"""Which norms a model has, and where: found on a small copy while it runs.

A norm that gives the same for x and x + c takes the mean off (LayerNorm); one that gives the same for x and 2x divides
by the root of the mean square (RMSNorm), whatever it is called: T5's LayerNorm is one. A norm that reads what comes
into the layer stands before a sub-layer; one whose output leaves the layer stands behind the sum; one that reads what
a linear module gave stands at the end of a branch, before the sum.

Source: Xiong et al. 2020, On Layer Normalization in the Transformer Architecture (https://arxiv.org/abs/2002.04745).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.models.auto_model import random_model
from loraft.models.registry import ModelSpec
from loraft.models.tiny_copy import shrunk

LAYERS = 2
"""Of a stack whose layers are alike."""


def miniature(config: PreTrainedConfig) -> PreTrainedModel:
    """A small copy of the model of `config`, in float32 and eval mode; its weights are as they are before training.

    Raises:
        ModelError: The copy's sizes make no model of this architecture.
    """
    return random_model(shrunk(config, LAYERS, keeps_lists=True))


INSIDE_ATTENTION = re.compile(r"(^|[._])(q|k|query|key)_?(layer)?_?norm")


@dataclass(frozen=True)
class Norms:
    """The norms of a stack of layers.

    Attributes:
        kind: `LayerNorm`, `RMSNorm` or the class that computes neither.
        place: Where they stand in a layer.
        final: Whether one stands behind the last layer.
    """

    kind: str
    place: str
    final: bool
    queries_and_keys: bool


class _Call(NamedTuple):
    module: nn.Module
    given: Tensor
    gave: Tensor


def norms_of(config: PreTrainedConfig, family: ModelSpec) -> Norms | None:
    """The norms of the layers of the model of `config`; None where there are none, or where it cannot be found out."""
    try:
        return _norms(miniature(config), family)
    except Exception:  # a model that is not in the table may not run at other sizes; positions say why
        return None


def _norms(model: nn.Module, family: ModelSpec) -> Norms | None:
    layers = list(model.get_submodule(family.layers_path).children())
    calls = _calls(model, (layers[0], layers[-1]), has_decoder=len(family.stacks) > 1)
    first, last = (next(call for call in calls if call.module is layer) for layer in (layers[0], layers[-1]))
    names = {module: name for name, module in layers[0].named_modules()}
    norms = [call for call in calls if _is_norm(call.module)]
    inside = [call for call in norms if call.module in names]
    around = [call for call in inside if not INSIDE_ATTENTION.search(names[call.module])]
    if not around:
        return None
    within = {module for layer in layers for module in layer.modules()}
    final = any(torch.equal(norm.given, last.gave) for norm in norms if norm.module not in within)
    branches = [call.gave for call in calls if call.module in names and isinstance(call.module, nn.Linear | Conv1D)]
    return Norms(_kind(around[0].module), _place(around, first, branches), final, len(inside) > len(around))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _calls(model: nn.Module, ends: Sequence[nn.Module], *, has_decoder: bool) -> list[_Call]:
    """What norms, linear modules and the layers at both ends were given and gave, in order, while the model reads."""
    calls: list[_Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        gave = out[0] if isinstance(out, tuple | list) else out
        if isinstance(given, Tensor) and isinstance(gave, Tensor):
            calls.append(_Call(module, given, gave))

    for module in model.modules():
        if _is_norm(module) or isinstance(module, nn.Linear | Conv1D) or module in ends:
            module.register_forward_hook(hook, with_kwargs=True)
    ids = torch.tensor([[5, 7, 11, 13, 17]])
    with torch.no_grad():
        model(input_ids=ids, **({"decoder_input_ids": ids} if has_decoder else {}))
    return calls


def _kind(norm: nn.Module) -> str:
    weight = next(norm.parameters(), torch.zeros(64))
    x = 10 * torch.randn(3, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with torch.no_grad():
        plain, moved, doubled = norm(x), norm(x + 100), norm(2 * x)
    if torch.allclose(plain, moved, atol=1e-3, rtol=1e-3):
        return "LayerNorm"
    return "RMSNorm" if torch.allclose(plain, doubled, atol=1e-3, rtol=1e-3) else type(norm).__name__


def _place(norms: Sequence[_Call], layer: _Call, branches: Sequence[Tensor]) -> str:
    before = [norm for norm in norms if torch.equal(norm.given, layer.given)]
    at_branch_end = any(torch.equal(norm.given, branch) for norm in norms for branch in branches)
    if any(torch.equal(norm.gave, layer.gave) for norm in norms):
        return "after each sub-layer's sum (post-norm)"
    if before and at_branch_end:
        return "before each sub-layer and behind it, within the branch"
    if at_branch_end:
        return "behind each sub-layer, within the branch (before the sum)"
    if before:
        beside = len(before) == len(norms)
        return f"before {'attention and feed-forward, side by side' if beside else 'each sub-layer'} (pre-norm)"
    return "not found out"

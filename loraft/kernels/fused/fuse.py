"""Which modules of a model train by fused forms: those whose class computes the plain form, to the letter or the bit.

Of a form that this GPU computes rightly, which is tried, all such modules are taken.

Nothing but the modules of this model is changed. Outside of training, and off CUDA, they compute as they did before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation
from transformers.models.llama import modeling_llama

from loraft.figures import counted
from loraft.kernels.fused.capped_rows import capped_modules, fuse_capped
from loraft.kernels.fused.forms import FUSED, fused_gated, fused_norm, fused_rotated
from loraft.kernels.fused.row_trials import CAPPED, capped_fault
from loraft.kernels.fused.trials import GATED, NORMS, ROTARY, faults
from loraft.kernels.rms_norm import epsilon_of, formula_of

ROTATES = "apply_rotary_pos_emb"


def fuse_chosen(model: nn.Module, device: str, dtype: torch.dtype) -> list[str]:
    """Let the layers train by the fused forms that this GPU computes rightly; which ones these are, in sentences."""
    if device != "cuda":
        return []
    wrong = dict(faults(device, dtype))
    capped = next(iter(capped_modules(model)), None)
    fault = capped_fault(device, dtype, capped.head_dim) if capped is not None else None
    if fault is not None:
        wrong[CAPPED] = fault
    found = {name: fuse(model) for name, fuse in FUSE.items() if name not in wrong}
    taken = [f"{name} of {counted(number, 'module')}" for name, number in found.items() if number]
    notes = [f"fused kernels, tried on this GPU, compute the {', the '.join(taken)}"] if taken else []
    return notes + [
        f"torch's own operations compute the {', the '.join(name for name in wrong if wrong[name] == reason)}: {reason}"
        for reason in sorted(set(wrong.values()))
    ]


def fuse_norms(model: nn.Module) -> int:
    """Let every frozen norm of a known formula train by the fused form; the number of those found."""
    found = [(module, formula) for module in model.modules() if (formula := formula_of(module)) is not None]
    for module, formula in found:
        _put_before(module, _FusedNorm, formula=formula)
    return len(found)


def fuse_gated(model: nn.Module) -> int:
    """Let every gated feed-forward part that is written as Llama's train by the fused form; their number."""
    found = gated_parts(model)
    for module, by_gelu in found:
        _put_before(module, _FusedGated, by_gelu=by_gelu)
    return len(found)


def gated_parts(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """The feed-forward parts that have a fused form, and whether it is by GELU."""
    written = [each for each in model.modules() if _is_written_as(type(each).forward, modeling_llama.LlamaMLP.forward)]
    return [(module, by_gelu) for module in written if (by_gelu := _is_gelu(module.act_fn)) is not None]


def fuse_rotary(model: nn.Module) -> int:
    """Let attention whose positions are turned as Llama's train by the fused form; the number of its modules.

    Their forward is that of their class with another function under the name of the one that turns.
    """
    made: dict[type[nn.Module], type[nn.Module]] = {}
    found = 0
    for module in model.modules():
        kind = type(module)
        forward = inspect.unwrap(kind.forward)  # transformers 5.24 puts one around it that renames a parameter
        plain = getattr(forward, "__globals__", {}).get(ROTATES)
        if plain is None or ROTATES not in forward.__code__.co_names or not _turns_as_llamas(plain):
            continue
        if kind not in made:
            made[kind] = type(kind.__name__, (kind,), {"forward": _with_another(forward, ROTATES, _turning(plain))})
        module.__class__ = made[kind]
        found += 1
    return found


FUSE: Mapping[str, Callable[[nn.Module], int]] = {
    NORMS: fuse_norms, ROTARY: fuse_rotary, GATED: fuse_gated, CAPPED: fuse_capped,
}  # fmt: skip
"""What lets the layers of a model train by each fused form, and counts them."""


def _with_another(function: Any, name: str, other: Callable[..., Any]) -> FunctionType:
    """The same function, for which another one stands under a global name."""
    scope = function.__globals__ | {name: other}
    made = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _is_gelu(activation: Any) -> bool | None:
    """Whether an activation is the GELU by tanh, or SiLU; None where it is neither."""
    if type(activation) is GELUTanh:
        return True if isinstance(activation.act, partial) else None
    return False if type(activation) in (SiLUActivation, nn.SiLU) else None


def _put_before(module: nn.Module, kind: type[nn.Module], **facts: Any) -> None:
    module.__class__ = type(type(module).__name__, (kind, type(module)), facts)


def has_form(x: Tensor) -> bool:
    """Whether there are fused forms for what lies where `x` does, in its dtype."""
    return x.is_cuda and x.dtype in FUSED


class _FusedNorm(nn.Module):
    """Set before the class of a norm."""

    formula: tuple[float, bool]
    weight: nn.Parameter

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        plain_weight = hidden_states.dtype == self.weight.dtype and not self.weight.requires_grad
        if self.training and plain_weight and has_form(hidden_states):
            offset, rounds = self.formula
            return fused_norm(hidden_states, self.weight, epsilon_of(self), offset, rounds=rounds)
        plain: Tensor = super().forward(hidden_states)
        return plain


class _FusedGated(nn.Module):
    """Set before the class of a gated feed-forward part."""

    by_gelu: bool
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        if self.training and has_form(x):
            gate, up = self.gate_proj(x), self.up_proj(x)
            if gate.dtype == up.dtype and gate.dtype in FUSED:
                out: Tensor = self.down_proj(fused_gated(gate, up, by_gelu=self.by_gelu))
                return out
        plain: Tensor = super().forward(x)
        return plain


def _turning(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The function that turns queries and keys, in the fused form where gradients are enabled."""

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        fits = q.dtype == k.dtype and cos.dim() == 3 and q.shape[-1] == cos.shape[-1] and unsqueeze_dim == 1
        if fits and torch.is_grad_enabled() and has_form(q) and has_form(cos):
            return fused_rotated(q, k, cos, sin)
        return plain(q, k, cos, sin, unsqueeze_dim)

    return turn


def _turns_as_llamas(function: Callable[..., Any]) -> bool:
    function, llamas = inspect.unwrap(function), inspect.unwrap(modeling_llama.apply_rotary_pos_emb)
    half = getattr(function, "__globals__", {}).get("rotate_half")
    return _is_written_as(function, llamas) and _is_written_as(half, modeling_llama.rotate_half)


def _is_written_as(function: Any, model: Any) -> bool:
    """Whether two functions have the same instructions: transformers writes a family out by copying another."""
    mine, its = getattr(function, "__code__", None), model.__code__
    return mine is not None and (mine.co_code, mine.co_names) == (its.co_code, its.co_names)

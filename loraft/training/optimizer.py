"""The optimizer, its learning rate, and its state as plain tensors.

The rate is a pure function of the step, so a schedule has no state that could be lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loraft.config.schema import TrainingSection

Scalar = int | float


def warmup_steps(setting: float, steps: int) -> int:
    """The steps of warm-up: `setting` itself, or that share of all `steps` (rounded up) where it is below 1."""
    return math.ceil(setting * steps) if setting < 1 else min(int(setting), steps)


def learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """The rate of optimizer step `step`, counted from 1 to `steps`.

    Warm-up rises linearly and never wastes a step on a rate of zero: step s of w runs at peak · s / (w + 1).
    With p = (step - 1 - w) / (steps - w) the rate after it is peak · (1 - p) for linear, peak · (1 + cos πp) / 2
    for cosine (Loshchilov and Hutter 2017, equation 5), and peak for constant.
    """
    if step <= warmup:
        return peak * step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, steps - warmup)
    shapes = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
    return peak * shapes[schedule]


def resolve_optim(training: TrainingSection, *, method: str, device: str) -> tuple[str, str | None]:
    """The optimizer that `training.optim` stands for on `device`, and a sentence where that is not the one named."""
    if training.optim == "auto":
        return ("paged_adamw_32bit" if method == "qlora" and device == "cuda" else "adamw"), None
    if training.optim.startswith("paged_") and device == "cpu":
        unpaged = {"paged_adamw_32bit": "adamw", "paged_adamw_8bit": "adamw_8bit"}[training.optim]
        why = "paging moves optimizer state out of GPU memory"
        return unpaged, f"training.optim {training.optim} is {unpaged} on the CPU: {why}"
    return training.optim, None


def build_optimizer(trainable: Mapping[str, nn.Parameter], training: TrainingSection) -> Optimizer:
    """AdamW over `trainable` as the (resolved) section says; vectors, such as norms and biases, do not decay."""
    decayed = [parameter for parameter in trainable.values() if parameter.ndim >= 2]
    others = [parameter for parameter in trainable.values() if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, training.weight_decay), (others, 0.0))
        if parameters
    ]
    betas = (training.adam_beta1, training.adam_beta2)
    if training.optim == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit

    classes = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit, "paged_adamw_32bit": PagedAdamW32bit}
    optimizer: Optimizer = classes[training.optim](groups, lr=0.0, betas=betas)
    return optimizer


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
    """The state of every parameter as tensors and numbers, named `INDEX.FIELD` in the order of the groups."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Scalar] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for field, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{field}"] = value.detach().clone().contiguous()
            else:
                numbers[f"{index}.{field}"] = value
    return tensors, numbers


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Scalar]) -> None:
    """Put back what `optimizer_state` gave, bit for bit: no dtype is cast and paged buffers stay paged."""
    fields: dict[int, dict[str, Tensor | Scalar]] = {}
    for name, value in [*tensors.items(), *numbers.items()]:
        number, _, field = name.partition(".")
        fields.setdefault(int(number), {})[field] = value
    for index, (place, parameter) in enumerate(_places(optimizer)):
        if index in fields:
            _start_state(optimizer, place, parameter)
            for field, value in fields[index].items():
                _put(optimizer.state[parameter], field, value, parameter.device)


def _put(state: dict[str, Any], field: str, value: Tensor | Scalar, device: torch.device) -> None:
    there = state.get(field)
    if isinstance(value, Tensor) and isinstance(there, Tensor):
        there.copy_(value)
    elif isinstance(value, Tensor):
        # AdamW keeps its step counter beside the parameter when it is fused; the moments always are.
        state[field] = value.to(device)
    else:
        state[field] = value


def _start_state(optimizer: Optimizer, place: tuple[int, int], parameter: nn.Parameter) -> None:
    """Have bitsandbytes allocate its buffers, paged ones included, as its first step would."""
    if hasattr(optimizer, "init_state") and not optimizer.state[parameter]:
        group_index, parameter_index = place
        group = optimizer.param_groups[group_index]
        optimizer.init_state(group, parameter, group_index, parameter_index)


def _places(optimizer: Optimizer) -> list[tuple[tuple[int, int], nn.Parameter]]:
    return [
        ((g, p), parameter)
        for g, group in enumerate(optimizer.param_groups)
        for p, parameter in enumerate(group["params"])
    ]


def _parameters(optimizer: Optimizer) -> Sequence[nn.Parameter]:
    return [parameter for _, parameter in _places(optimizer)]

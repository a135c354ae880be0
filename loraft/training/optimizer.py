"""The optimizer, its learning rate, and its state as plain tensors.

The rate is a pure function of the step, so a schedule has no state that could be lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loraft.config.schema import TrainingSection

Scalar = int | float


def warmup_steps(setting: float, steps: int) -> int:
    """The steps of warm-up: `setting` itself, or that share of all `steps` (rounded up) where it is below 1."""
    return math.ceil(setting * steps) if setting < 1 else min(int(setting), steps)


def learning_rate(training: TrainingSection, step: int, steps: int) -> float:
    """The rate of optimizer step `step`, counted from 1 to `steps`, as the resolved section says.

    Warm-up rises linearly and never wastes a step on a rate of zero: step s of w runs at peak · s / (w + 1).
    With p = (step - 1 - w) / (steps - w) the rate after it is peak · (1 - p) for linear, peak · (1 + cos πp) / 2
    for cosine (Loshchilov and Hutter 2017, equation 5), and peak for constant.
    """
    assert training.learning_rate != "auto", "the plan resolves it"
    peak, warmup = training.learning_rate, warmup_steps(training.warmup_steps, steps)
    if step <= warmup:
        return peak * step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, steps - warmup)
    shapes = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
    return peak * shapes[training.lr_scheduler_type]


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
    matrices = [parameter for parameter in trainable.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable.values() if parameter.ndim < 2]
    decays = ((matrices, training.weight_decay), (vectors, 0.0))
    groups: list[dict[str, Any]] = [{"params": found, "weight_decay": decay} for found, decay in decays if found]
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
    for index, (_, parameter) in enumerate(_places(optimizer)):
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
    for index, ((g, p), parameter) in enumerate(_places(optimizer)):
        state = optimizer.state[parameter]
        if index in fields and hasattr(optimizer, "init_state") and not state:
            # bitsandbytes allocates its buffers, paged ones included, as its first step would.
            optimizer.init_state(optimizer.param_groups[g], parameter, g, p)
        for field, value in fields.get(index, {}).items():
            if isinstance(value, Tensor) and isinstance(state.get(field), Tensor):
                state[field].copy_(value)
            else:  # AdamW keeps its step counter beside the parameter when it is fused; the moments always are.
                state[field] = value.to(parameter.device) if isinstance(value, Tensor) else value


def _places(optimizer: Optimizer) -> Iterator[tuple[tuple[int, int], nn.Parameter]]:
    """The parameters, each by the numbers of its group and of its place in the group."""
    for g, group in enumerate(optimizer.param_groups):
        yield from (((g, p), parameter) for p, parameter in enumerate(group["params"]))

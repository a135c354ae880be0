"""The optimizers, by their names in a config: what they train, their state, its bytes, and the same as tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.optimization import Adafactor
from transformers.pytorch_utils import Conv1D

from loraft.adapters.inject import AdaptedModel
from loraft.adapters.targets import TargetModules
from loraft.config.choices import OptimName
from loraft.config.schema import RunConfig, TrainingSection
from loraft.distributed.sharding import placed_as, plain
from loraft.errors import ConfigError, first_line
from loraft.models.modules import is_within, linear_modules
from loraft.models.registry import ModelSpec

Scalar = int | float
Groups = list[dict[str, Any]]
OptimizerState = tuple[dict[str, Tensor], dict[str, Scalar]]
"""Tensors and numbers, by their names in a checkpoint."""
IN_8_BITS_FROM = 4096
"""bitsandbytes keeps the state of smaller tensors in 32 bits."""
BLOCK = 256
"""Numbers of state in 8 bits that share one float32."""
SLOW_BETA = 0.9999
"""AdEMAMix's third beta, that of its slow average, as bitsandbytes and transformers have it."""


class TrainedTensor(NamedTuple):
    """What an optimizer needs to know of a tensor that is trained.

    Attributes:
        hidden: It is the matrix of a linear module inside the layers, which is what Muon is for.
    """

    shape: tuple[int, ...]
    hidden: bool

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return prod(self.shape)


def trained_tensors(
    skeleton: PreTrainedModel, family: ModelSpec, targets: TargetModules | None, *, use_dora: bool
) -> Iterator[TrainedTensor]:
    """The tensors that are trained: A, B and DoRA's magnitudes, and the weights of what is trained whole."""
    linear = linear_modules(skeleton)
    layers = tuple(f"{path}." for path in family.stacks.values())
    for name, rank in targets.ranks.items() if targets is not None else ():
        inputs, outputs = linear[name]
        yield TrainedTensor((rank, inputs), hidden=True)
        yield TrainedTensor((outputs, rank), hidden=True)
        if use_dora:
            yield TrainedTensor((outputs,), hidden=False)
    for update in targets.weights if targets is not None else ():
        for shape in update.factors:
            yield TrainedTensor(shape, hidden=True)
    for name, rows in targets.rows.items() if targets is not None else ():
        yield TrainedTensor((len(rows), skeleton.get_parameter(f"{name}.weight").shape[1]), hidden=False)
    for size in targets.biases.values() if targets is not None else ():
        yield TrainedTensor((size,), hidden=False)
    for name, weight in skeleton.named_parameters():
        owner, _, kind = name.rpartition(".")
        if weight.requires_grad and (targets is None or is_within(owner, *targets.saved)):
            hidden = kind == "weight" and owner in linear and owner.startswith(layers)
            yield TrainedTensor(tuple(weight.shape), hidden)


@dataclass(frozen=True)
class OptimizerKind:
    """One of `training.optim`.

    Attributes:
        state_bytes: The bytes of its state of a tensor, counters left out.
        from_bitsandbytes: It runs where bitsandbytes does.
        pages: Its state need not be on the GPU while that is short of memory.
    """

    build: Callable[[Groups, TrainingSection], Optimizer]
    state_bytes: Callable[[TrainedTensor], int]
    from_bitsandbytes: bool = False
    pages: bool = False


class MuonAndAdamW(Optimizer):
    """Muon for the matrices of hidden layers and AdamW for all else, as one optimizer.

    Muon's step has the length of AdamW's (torch's `match_rms_adamw`), so that one rate and one decay do for both.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); the length of the step by Liu et al. 2025
    (https://arxiv.org/abs/2502.16982).
    """

    def __init__(self, groups: Groups, training: TrainingSection) -> None:
        by_muon, others = ([group for group in groups if group["hidden"] is hidden] for hidden in (True, False))
        parts = [torch.optim.Muon(by_muon, lr=0.0, adjust_lr_fn="match_rms_adamw")] if by_muon else []
        self._parts: list[Optimizer] = [*parts, *([_adamw(others, training)] if others else [])]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        for part in self._parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self._parts:
            part.step()


def _adamw(groups: Groups, training: TrainingSection) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(training.adam_beta1, training.adam_beta2), fused=True)


def _adafactor(groups: Groups, _training: TrainingSection) -> Optimizer:
    """As transformers' trainer has it: the rate is that of the schedule, and neither warms up nor scales by itself.

    torch's own scales the rate by the size of the weights, at which B of LoRA, which begins at zero, hardly moves.
    """
    return Adafactor(groups, lr=0.0, scale_parameter=False, relative_step=False)  # type: ignore[no-untyped-call]


def _of_bitsandbytes(name: str, state_bytes: Callable[[TrainedTensor], int]) -> OptimizerKind:
    def build(groups: Groups, training: TrainingSection) -> Optimizer:
        from bitsandbytes import optim

        betas = (training.adam_beta1, training.adam_beta2, *((SLOW_BETA,) if "AdEMAMix" in name else ()))
        optimizer: Optimizer = getattr(optim, name)(groups, lr=0.0, betas=betas)
        return optimizer

    return OptimizerKind(build, state_bytes, from_bitsandbytes=True, pages=name.startswith("Paged"))


def _floats(count: int) -> Callable[[TrainedTensor], int]:
    return lambda tensor: 4 * count * tensor.numbers


def _bytes(count: int) -> Callable[[TrainedTensor], int]:
    """`count` numbers for each, in 8 bits with a float32 for each block, where the tensor is large enough."""

    def state_bytes(tensor: TrainedTensor) -> int:
        if tensor.numbers < IN_8_BITS_FROM:
            return 4 * count * tensor.numbers
        return count * (tensor.numbers + 4 * ceil(tensor.numbers / BLOCK))

    return state_bytes


def _factored(tensor: TrainedTensor) -> int:
    """A float32 for each row and each column of a matrix, or for each number of a vector."""
    if len(tensor.shape) < 2:
        return 4 * tensor.numbers
    *_, rows, columns = tensor.shape
    return 4 * (tensor.numbers // columns + tensor.numbers // rows)


KINDS: Mapping[str, OptimizerKind] = {
    "adamw": OptimizerKind(_adamw, _floats(2)),
    "adamw_8bit": _of_bitsandbytes("AdamW8bit", _bytes(2)),
    "paged_adamw_8bit": _of_bitsandbytes("PagedAdamW8bit", _bytes(2)),
    "paged_adamw_32bit": _of_bitsandbytes("PagedAdamW32bit", _floats(2)),
    "adafactor": OptimizerKind(_adafactor, _factored),
    "lion_8bit": _of_bitsandbytes("Lion8bit", _bytes(1)),
    "ademamix_8bit": _of_bitsandbytes("AdEMAMix8bit", _bytes(3)),
    "muon": OptimizerKind(MuonAndAdamW, lambda tensor: _floats(1 if tensor.hidden else 2)(tensor)),
}
"""Every optimizer but auto, which the plan resolves to one of them."""


SMALLER: OptimName = "paged_adamw_32bit"
"""What auto is for QLoRA on CUDA where AdamW is foreseen not to fit: paging waits for the GPU after each tensor."""


def resolve_optim(training: TrainingSection, *, device: str) -> tuple[str, str | None]:
    """The optimizer that `training.optim` stands for on `device`, and a sentence where that is not the one named."""
    if training.optim == "auto":
        return "adamw", None
    if training.optim.startswith("paged_") and device == "cpu":
        unpaged = {"paged_adamw_32bit": "adamw", "paged_adamw_8bit": "adamw_8bit"}[training.optim]
        why = "paging moves optimizer state out of GPU memory"
        return unpaged, f"training.optim {training.optim} is {unpaged} on the CPU: {why}"
    return training.optim, None


def require_optimizer(training: TrainingSection, device: str) -> None:
    """Refuse an optimizer that cannot step on the device: what comes from bitsandbytes takes a step, to see.

    Raises:
        ConfigError: It cannot.
    """
    kind = KINDS[training.optim]
    if not kind.from_bitsandbytes:
        return
    weights = [nn.Parameter(torch.ones(shape, device=device)) for shape in ((64, 64), (8,))]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.build([{"params": weights}], training).step()
    except Exception as error:  # a native library is missing or fails in its own ways; each is the reason
        message = f"{training.optim} cannot take a step on this {device}: {first_line(error)}"
        remedy = "write adamw or adafactor; `loraft doctor` tells what of bitsandbytes works here"
        raise ConfigError(message, key="training.optim", remedy=remedy) from error


def hidden_matrices(adapted: AdaptedModel) -> frozenset[str]:
    """The trained matrices of linear modules inside the layers, by name: not embeddings, heads or what is a vector."""
    layers = [f".{path}." for path in adapted.loaded.family.stacks.values()]
    modules = adapted.model.named_modules()
    linear = {f"{name}.weight" for name, module in modules if isinstance(module, nn.Linear | Conv1D)}
    return frozenset(
        name for name in linear.intersection(adapted.trainable) if any(path in f".{name}" for path in layers)
    )


def optimizer_of(adapted: AdaptedModel, config: RunConfig) -> Optimizer:
    """The optimizer of a run as its resolved config says."""
    hidden = hidden_matrices(adapted) if config.training.optim == "muon" else frozenset()
    return build_optimizer(adapted.trainable, config.training, hidden=hidden, plus_ratio=config.lora.plus_ratio)


def build_optimizer(
    trainable: Mapping[str, nn.Parameter],
    training: TrainingSection,
    *,
    hidden: Set[str] = frozenset(),
    plus_ratio: float = 1.0,
) -> Optimizer:
    """The optimizer of `trainable` that the (resolved) section names; vectors, such as norms and biases, do not decay.

    Each of its groups has a `rate_factor` on the rate of the step: `plus_ratio` for B, and 1 for all else.

    Source: Hayou et al. 2024, LoRA+ (https://arxiv.org/abs/2402.12354).
    """
    by_rule: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        factor = plus_ratio if "lora_B" in name.split(".") else 1.0
        by_rule.setdefault((parameter.ndim < 2, factor, name in hidden), []).append(parameter)
    groups = [
        {"params": found, "weight_decay": 0.0 if vector else training.weight_decay, "rate_factor": factor, "hidden": of}
        for (vector, factor, of), found in sorted(by_rule.items(), key=lambda rule: rule[0])
    ]
    return KINDS[training.optim].build(groups, training)


def optimizer_state(
    optimizer: Optimizer, trainable: Mapping[str, nn.Parameter], *, keep: bool = True, in_parts: bool = False
) -> OptimizerState:
    """The state of every parameter as tensors and numbers, named `INDEX.FIELD`: matrices first, whatever the groups.

    Tensors are copied to main memory: a GPU need not have room for them twice. Of parameters in parts all ranks ask
    together, and those that do not `keep` it are given none; what is left `in_parts` is the state itself, and no copy.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Scalar] = {}
    for index, parameter in enumerate(_in_order(trainable)):
        for field, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and in_parts:
                tensors[f"{index}.{field}"] = value.detach()
            elif isinstance(value, Tensor):
                whole = plain(value.detach())
                if keep:
                    tensors[f"{index}.{field}"] = whole.to("cpu", copy=True).contiguous()
            else:
                numbers[f"{index}.{field}"] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: Optimizer,
    trainable: Mapping[str, nn.Parameter],
    tensors: Set[str],
    read: Callable[[str, nn.Parameter], Tensor],
    numbers: Mapping[str, Scalar],
) -> None:
    """Put back what `optimizer_state` gave, bit for bit: no dtype is cast and paged buffers stay paged.

    Args:
        optimizer: What gets the state.
        trainable: Its parameters by name.
        tensors: The names of the tensors.
        read: Gives the tensor of that name, in parts where the parameter is; one at a time is asked for.
        numbers: The numbers by name.
    """
    named: dict[int, list[str]] = {}
    for name in (*sorted(tensors), *numbers):
        named.setdefault(int(name.partition(".")[0]), []).append(name)
    places = {
        parameter: (g, p)
        for g, group in enumerate(optimizer.param_groups)
        for p, parameter in enumerate(group["params"])
    }
    for index, parameter in enumerate(_in_order(trainable)):
        state, (g, p) = optimizer.state[parameter], places[parameter]
        if index in named and hasattr(optimizer, "init_state") and not state:
            # bitsandbytes allocates its buffers, paged ones included, as its first step would.
            optimizer.init_state(optimizer.param_groups[g], parameter, g, p)
        for name in named.get(index, ()):
            field = name.partition(".")[2]
            if name in numbers:
                state[field] = numbers[name]
            elif isinstance(state.get(field), Tensor):
                state[field].copy_(read(name, parameter))
            else:  # AdamW keeps its step counter beside the parameter when it is fused; the moments always are.
                state[field] = placed_as(parameter, read(name, parameter))


def _in_order(trainable: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """The parameters as checkpoints number them: matrices, then vectors, each in the order of their names."""
    return sorted(trainable.values(), key=lambda parameter: parameter.ndim < 2)

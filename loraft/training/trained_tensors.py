"""Every tensor that a run trains, known before a weight is loaded: gradients and optimizers are counted by it."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedModel

from loraft.adapters.targets import TargetModules
from loraft.models.modules import is_within, linear_modules
from loraft.models.registry import ModelSpec
from loraft.training.optimizer import TrainedTensor


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

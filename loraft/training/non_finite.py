"""A loss or gradient that is not finite: on which rows, where in the model it begins, and what to do about it.

Weights and outputs are looked at once something is wrong, and not before: that would cost each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loraft.errors import NonFiniteError
from loraft.models.quantize import unpacked
from loraft.tasks.batch import Batch
from loraft.tokenization.examples import Example
from loraft.training.checkpoint import Trainer

NAMED = 8
"""The most rows that an error names."""
LOWER_RATE = "a lower training.learning_rate is the usual cure"
GO_ON = "; `resume_anyway` goes on with it from the last checkpoint, if there is one"
DAMAGED = "the files that the run begins with are damaged: copy or download them again"


def require_finite(value: float, what: str, step: int, examples: Sequence[Example], run: Trainer) -> float:
    """`value`, where it is finite.

    Args:
        value: What was computed.
        what: What it is called.
        step: The optimizer step that it belongs to.
        examples: The rows that it was computed from.
        run: The run.

    Raises:
        NonFiniteError: It is NaN or infinite; with the first module whose weights or outputs are.
    """
    if math.isfinite(value):
        return value
    named = ", ".join(example.where for example in examples[:NAMED]) + (", …" if len(examples) > NAMED else "")
    cause, remedy = _cause(run, step, examples)
    raise NonFiniteError(
        f"{what} is {value} at step {step}, on the rows {named}{cause}",
        where=str(run.folder.path),
        remedy=remedy,
    )


def _cause(run: Trainer, step: int, examples: Sequence[Example]) -> tuple[str, str]:
    """Where it begins, as the end of a sentence, and the remedy."""
    model, dtype = run.adapted.loaded.model, run.adapted.loaded.placement.dtype
    weight = first_weight(model)
    if weight is not None:
        name, parameter = weight
        spoilt = parameter.requires_grad and step > 1
        return f": {name} holds NaN or infinity", LOWER_RATE + GO_ON if spoilt else DAMAGED
    size = run.settings.per_device_train_batch_size
    rows = (examples[start : start + size] for start in range(0, len(examples), size))
    output = first_output(run.loss, (run.task.collate(part, run.layout).to(run.device) for part in rows))
    cause = f": the weights are finite, and {output} is the first module to give NaN or infinity" if output else ""
    if dtype == torch.float16:
        return cause, f"model.dtype bfloat16 or float32 holds larger numbers, or {LOWER_RATE}{GO_ON}"
    return cause, LOWER_RATE + GO_ON if step > 1 else "no step was taken yet: look at the base and at these rows"


def first_weight(model: nn.Module) -> tuple[str, nn.Parameter] | None:
    """The first parameter that is not finite, and its name as the model's files have it."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            packed = not parameter.is_floating_point() and isinstance(module, nn.Linear) and name == "weight"
            held = unpacked(module) if packed else parameter.data
            if not held.isfinite().all():
                return f"{prefix}.{name}".replace(".base_layer.", "."), parameter
    return None


def first_output(loss: nn.Module, batches: Iterator[Batch]) -> str | None:
    """The name of the first module of the model in `loss` whose output for the batches is not finite."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            if not found and any(not tensor.isfinite().all() for tensor in _tensors(output)):
                found.append(name)

        return look

    model = loss.get_submodule("model")
    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            for batch in batches:
                loss(batch)
                if found:
                    return found[0].replace(".base_layer", "")
    finally:
        for handle in handles:
            handle.remove()
    return None


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, tuple):
        for part in output:
            yield from _tensors(part)

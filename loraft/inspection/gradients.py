"""How gradients come through a model's layers: the norm that each layer gets, of its weights and of its outputs.

Whether a gradient vanishes or explodes is told by the outputs, the residual stream: what arrives at an early layer has
come through all later ones. The gradient of a weight also depends on how many numbers it has and on what it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraft.models.model_structure import placed_layers
from loraft.models.registry import ModelSpec

VANISHING_BELOW = 1e-3
EXPLODING_ABOVE = 1e3
"""The ratio of the first layer's gradient to the last one's from which on one speaks of either: our own choice."""
Course = Literal["vanishing", "steady", "exploding", "not finite"]


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of a layer.

    Attributes:
        parameters: Its trained numbers.
        norm: Of the gradient of these; None where there are none.
        stream_norm: Of the gradient of what it gives, `[lines, time, hidden]`; None where none comes this far: below
            the first trained layer nothing is computed.
    """

    stack: str
    index: int
    parameters: int
    norm: float | None
    stream_norm: float | None


@dataclass(frozen=True)
class OutsideGradient:
    """The gradient of a parameter outside the layers: of embeddings, the last norm, the head."""

    name: str
    parameters: int
    norm: float


@dataclass(frozen=True)
class GradientCourse:
    """How the gradient of the residual stream goes from a stack's last layer to its first.

    Attributes:
        first: The first layer that it comes to.
        ratio: The norm at the first layer over that at the last; None where both are one, or one is zero.
        course: What the ratio is called by the thresholds; None without one.
    """

    stack: str
    first: int
    last: int
    ratio: float | None
    course: Course | None
    vanishing_below: float = VANISHING_BELOW
    exploding_above: float = EXPLODING_ABOVE


@dataclass(frozen=True)
class BatchGradients:
    """The gradients of one batch.

    Attributes:
        loss: In nats a target.
        norm: Of all trained parameters together, as training clips it.
        idle: Trained parameters whose gradient is zero, or that got none.
    """

    loss: float
    norm: float
    layers: tuple[LayerGradient, ...]
    outside: tuple[OutsideGradient, ...]
    idle: tuple[str, ...]
    courses: tuple[GradientCourse, ...]


def batch_gradients(
    model: PreTrainedModel,
    family: ModelSpec,
    trainable: Mapping[str, nn.Parameter],
    loss: Callable[[], Tensor],
    scale: float = 1.0,
) -> BatchGradients:
    """Compute the gradient of a loss, and tell its norm by layer; the parameters' own are given up afterwards.

    Args:
        model: The model itself, with adapters in it where there are any.
        family: Its row of the table.
        trainable: What is trained, by name.
        loss: Runs the model and gives its loss, a scalar.
        scale: The loss is multiplied by it on the way back, so that 16-bit gradients do not become zero.
    """
    streams: dict[tuple[str, int], float] = {}
    with _listening(model, family, streams):
        value = loss()
        torch.autograd.backward(value * scale)
    norms = {name: _norm(parameter.grad) / scale for name, parameter in trainable.items()}
    for parameter in trainable.values():
        parameter.grad = None
    inside: dict[str, tuple[str, int]] = {}
    names = {id(parameter): name for name, parameter in trainable.items()}
    layers = []
    for (stack, index), layer in placed_layers(model, family.stacks):
        own = [names[id(each)] for each in layer.parameters() if id(each) in names]
        inside |= dict.fromkeys(own, (stack, index))
        stream = streams.get((stack, index))
        together = math.hypot(*(norms[name] for name in own)) if own else None
        size = sum(trainable[name].numel() for name in own)
        layers.append(LayerGradient(stack, index, size, together, None if stream is None else stream / scale))
    outside = (OutsideGradient(name, each.numel(), norms[name]) for name, each in trainable.items())
    return BatchGradients(
        loss=value.item(),
        norm=math.hypot(*norms.values()),
        layers=tuple(layers),
        outside=tuple(each for each in outside if each.name not in inside),
        idle=tuple(name for name, norm in norms.items() if norm == 0),
        courses=tuple(_courses(family, layers)),
    )


@contextmanager
def _listening(model: PreTrainedModel, family: ModelSpec, streams: dict[tuple[str, int], float]) -> Iterator[None]:
    """Note, while the model runs and its gradient is computed, the norm of the gradient of each layer's output."""

    def arrived(place: tuple[str, int], gradient: Tensor) -> None:
        streams[place] = _norm(gradient)

    def gave(place: tuple[str, int], _: nn.Module, __: object, output: object) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, Tensor) and states.requires_grad:
            states.register_hook(partial(arrived, place))  # type: ignore[no-untyped-call]

    with ExitStack() as hooks:
        for place, layer in placed_layers(model, family.stacks):
            hooks.enter_context(layer.register_forward_hook(partial(gave, place)))
        yield


def _norm(gradient: Tensor | None) -> float:
    """In float32, whatever the gradient is in; 0 where there is none."""
    return 0.0 if gradient is None else torch.linalg.vector_norm(gradient, dtype=torch.float32).item()


def _courses(family: ModelSpec, layers: Sequence[LayerGradient]) -> Iterator[GradientCourse]:
    for stack in family.stacks:
        reached = [layer for layer in layers if layer.stack == stack and layer.stream_norm is not None]
        if reached:
            first, last = reached[0], reached[-1]
            ratio, course = course_of(first.stream_norm or 0.0, last.stream_norm or 0.0)
            yield GradientCourse(
                stack, first.index, last.index, *((ratio, course) if first is not last else (None,) * 2)
            )


def course_of(first: float, last: float) -> tuple[float | None, Course | None]:
    """The ratio of the first layer's norm to the last one's, and what it is called."""
    if not (math.isfinite(first) and math.isfinite(last)):
        return None, "not finite"
    if last == 0:
        return None, None
    ratio = first / last
    return ratio, "vanishing" if ratio < VANISHING_BELOW else "exploding" if ratio > EXPLODING_ABOVE else "steady"

"""The model as it was before training, without a second copy of it.

Where an adapter begins as nothing, that is the base with the adapter switched off. Where it begins as something, from
another adapter or with directions of the weights, what is trained is kept as it began and put back for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from loraft.adapters.effect import acting
from loraft.adapters.inject import AdaptedModel
from loraft.config.schema import RunConfig
from loraft.config.sections import FROM_WEIGHTS
from loraft.tasks.task import Before
from loraft.training.known_run import ModelSummary


def begins_as_the_base(config: RunConfig, shape: ModelSummary) -> bool:
    """Whether the adapter of a run changes nothing before it is trained, and switching it off takes all of it away."""
    targets, lora = shape.targets, config.lora
    if targets is None or targets.saved or targets.biases or targets.rows:
        return False
    return lora.start_from is None and lora.init not in (*FROM_WEIGHTS, "loftq")


def before_training(config: RunConfig, shape: ModelSummary, adapted: AdaptedModel) -> Before:
    """What makes a model that was just made, while it is entered, what it is now."""
    if begins_as_the_base(config, shape):
        return partial(acting, adapted.model, None)
    began = {name: weight.detach().clone() for name, weight in adapted.trainable.items()}
    return partial(_as_it_began, adapted.trainable, began)


@contextmanager
def _as_it_began(trained: dict[str, nn.Parameter], began: dict[str, Tensor]) -> Iterator[None]:
    """What is trained has the values that it began with; the tensors change places, and nothing is copied."""
    now = {name: weight.data for name, weight in trained.items()}
    try:
        for name, weight in trained.items():
            weight.data = began[name]
        yield
    finally:
        for name, weight in trained.items():
            weight.data = now[name]

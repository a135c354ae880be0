"""What the decoder of an encoder-decoder reads: a start token, then the target one step late."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraft.errors import ModelError
from loraft.models.modules import wrapped_model


def decoder_inputs(model: nn.Module, target: Tensor) -> Tensor:
    """What the decoder reads to say `target`, as the model itself makes it in training.

    mBART begins with the last token of the target, which may be its language; all others with their start token.

    Args:
        model: An encoder-decoder of transformers, with or without adapters.
        target: `[rows, time]`.

    Returns:
        `[rows, time]`.

    Raises:
        ModelError: The decoder has no start token.
    """
    inner: Any = wrapped_model(model)
    if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        try:
            made: Tensor = inner.prepare_decoder_input_ids_from_labels(labels=target)
        except (TypeError, ValueError) as error:  # each family says in its own way that there is none
            raise _no_start() from error
        return made
    return torch.cat([torch.full_like(target[:, :1], start_token(inner)), target[:, :-1]], dim=1)


def start_token(model: PreTrainedModel) -> int:
    """What the decoder reads first where nothing else is said.

    Raises:
        ModelError: The model does not say.
    """
    for settings in (model.generation_config, model.config):
        start = getattr(settings, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise _no_start()


def _no_start() -> ModelError:
    return ModelError(
        "the decoder has no start token",
        key="decoder_start_token_id",
        remedy="The model's config.json or generation_config.json must name the token that its decoder begins from.",
    )

"""From texts to scores of classes, for encoders and decoders alike."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraft.models.registry import ModelSpec


def class_logits(
    model: PreTrainedModel,
    family: ModelSpec,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None = None,
) -> Tensor:
    """The scores of the classes: `[rows, classes]`.

    A decoder's are read at the last real token of each row, which the mask tells: not at what looks like the first
    padding, since padding may be the very token that ends a text, and not at padding itself.

    Args:
        model: The classifier itself, with adapters injected where there are any, not a wrapper around it.
        family: Its row of the table.
        input_ids: `[rows, time]`, padded on the right.
        attention_mask: `[rows, time]`, 1 at real tokens, of which each row has one at least.
        token_type_ids: `[rows, time]`, which of two texts a token is of; None where the model does not tell them apart.
    """
    read = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_type_ids is not None:
        read["token_type_ids"] = token_type_ids
    if not family.generates:
        whole: Tensor = model(**read).logits
        return whole
    hidden: Tensor = model.base_model(**read, use_cache=False).last_hidden_state
    last = attention_mask.sum(1) - 1
    decided: Tensor = model.get_submodule(family.classifier[-1])(hidden[torch.arange(len(last)), last])
    return decided

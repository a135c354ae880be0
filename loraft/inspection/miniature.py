"""A small copy of a model: the same architecture, narrow and shallow, with random weights.

This module knows which numbers of a config are sizes. It refuses to know what is tried on the copy. What decides how
an architecture computes (its flags, lists, factors and thetas) stays as it is; so a copy answers in milliseconds what
is asked of a model of any size, without its weights.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.models.loading import random_model

__all__ = ["MOST_POSITIONS", "miniature", "small_config"]

HEADS, HEAD_SIZE, VOCABULARY, MOST_POSITIONS = 4, 16, 64, 64
WIDTH = HEADS * HEAD_SIZE

SMALL: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_kv"), HEAD_SIZE),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), WIDTH),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size", "moe_intermediate_size"), WIDTH),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "sliding_window", "attention_window"), MOST_POSITIONS),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok",), 2),
}
"""The sizes of a copy, by the names that configs give them."""
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
          "num_decoder_layers")  # fmt: skip
FEW = 2
"""Layers of a copy in which no layer has settings of its own."""


def miniature(config: PreTrainedConfig) -> PreTrainedModel:
    """A small copy of the model of `config`, in float32 and eval mode; what is trained in it is random.

    Raises:
        ModelError: The copy's sizes make no model of this architecture.
    """
    model = random_model(small_config(config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[-1]))
    return model


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the copy. Layers keep their number where a list says something of each."""
    small: PreTrainedConfig = copy.deepcopy(config)
    _shrink(small)
    text = small.get_text_config()
    if text is not small:
        _shrink(text)
    return small


def _shrink(config: PreTrainedConfig) -> None:
    written: dict[str, Any] = dict(vars(config))
    lengths = {len(value) for value in written.values() if isinstance(value, list | tuple)}
    key_value_heads = written.get("num_key_value_heads")
    heads = config.num_attention_heads if hasattr(config, "num_attention_heads") else None
    keeps_heads = _has_lists(written.get("rope_parameters"))
    size = _head_size(config) if keeps_heads else HEAD_SIZE
    for name, value in written.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name in ("head_dim", "d_kv"):
            setattr(config, name, size)
        elif name in SMALL:
            smaller = SMALL[name] * size // HEAD_SIZE if SMALL[name] == WIDTH and name not in LENGTHS else SMALL[name]
            setattr(config, name, min(value, smaller) if name in LENGTHS else smaller)
        elif name in DEPTHS and value not in lengths:
            setattr(config, name, min(value, FEW))
        elif name.endswith("_token_id"):
            setattr(config, name, 0 if name == "pad_token_id" else 1)
    if isinstance(key_value_heads, int) and isinstance(heads, int):
        config.num_key_value_heads = HEADS if key_value_heads == heads else 1 if key_value_heads == 1 else HEADS // 2


LENGTHS = ("max_position_embeddings", "n_positions", "sliding_window", "attention_window")


def _has_lists(rope: object) -> bool:
    """Whether rotary settings list a factor for each pair of a head, which fixes the head's size."""
    if isinstance(rope, dict):
        return any(_has_lists(value) for value in rope.values())
    return isinstance(rope, list)


def _head_size(config: PreTrainedConfig) -> int:
    explicit = getattr(config, "head_dim", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)

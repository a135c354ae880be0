"""A small copy of a model: the same architecture, narrow and shallow, with random weights.

What decides how an architecture computes (its flags, lists, factors and thetas) stays as it is; so a copy answers in
milliseconds what is asked of a model of any size, without its weights.
"""

from __future__ import annotations

import copy

from transformers import PreTrainedConfig, PreTrainedModel

from loraft.models.auto_model import random_model

__all__ = ["miniature", "small_config"]

HEADS, HEAD_SIZE, FEED_FORWARD = 4, 16, 96
MOST_POSITIONS = 64

WIDTHS = ("hidden_size", "d_model", "dim", "n_embd", "word_embed_proj_dim", "embedding_size")
HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
               "decoder_attention_heads")  # fmt: skip
HEAD_SIZES = ("head_dim", "d_kv")
SIZES: dict[str, int] = {
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), FEED_FORWARD),
    **dict.fromkeys(("d_ff", "hidden_dim", "ffn_hidden_size", "moe_intermediate_size"), FEED_FORWARD),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "sliding_window"), MOST_POSITIONS),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("rotary_dim",), HEAD_SIZE // 2),
}
"""The other sizes of a copy, by the names that configs give them: enough tokens and positions to read a few words."""
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
          "num_decoder_layers")  # fmt: skip
FEW = 2
"""Layers of a copy in which no layer has settings of its own."""


def miniature(config: PreTrainedConfig) -> PreTrainedModel:
    """A small copy of the model of `config`, in float32 and eval mode; its weights are as they are before training.

    Raises:
        ModelError: The copy's sizes make no model of this architecture.
    """
    return random_model(small_config(config))


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the copy. Layers keep their number where a list says something of each."""
    small: PreTrainedConfig = copy.deepcopy(config)
    for part in (small, *(value for value in vars(small).values() if isinstance(value, PreTrainedConfig))):
        _shrink(part)
    return small


def _shrink(config: PreTrainedConfig) -> None:
    written = {name: value for name, value in vars(config).items() if type(value) is int}
    listed = {len(value) for value in vars(config).values() if isinstance(value, list | tuple)}
    heads, key_value_heads = getattr(config, "num_attention_heads", None), written.get("num_key_value_heads")
    size = _head_size(config) if _has_lists(getattr(config, "rope_parameters", None)) else HEAD_SIZE
    for name, value in written.items():
        if name in WIDTHS:
            setattr(config, name, HEADS * size)
        elif name in HEAD_SIZES:
            setattr(config, name, size)
        elif name in SIZES:
            setattr(config, name, SIZES[name])
        elif name in DEPTHS and value not in listed:
            setattr(config, name, min(value, FEW))
        elif name.endswith("_token_id"):
            setattr(config, name, 0 if name == "pad_token_id" else 1)
        elif name == "num_experts_per_tok":
            config.num_experts_per_tok = min(value, 2)
    for name in HEAD_COUNTS:
        if name in written:
            setattr(config, name, HEADS)
    if key_value_heads is not None:
        config.num_key_value_heads = HEADS if key_value_heads == heads else 1 if key_value_heads == 1 else HEADS // 2


def _has_lists(rope: object) -> bool:
    """Whether rotary settings list a factor for each pair of a head, which fixes the head's size."""
    if isinstance(rope, dict):
        return any(_has_lists(value) for value in rope.values())
    return isinstance(rope, list)


def _head_size(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

"""A small copy of a model: the same architecture, narrow and shallow, with random weights.

The copy keeps what decides how the architecture computes (flags, lists, factors and thetas), so that an experiment of
milliseconds answers for a model of any size, without its weights.
"""

from __future__ import annotations

import copy

from transformers import PreTrainedConfig, PreTrainedModel

from loraft.models.auto_model import random_model

HEADS, HEAD_SIZE = 4, 16
WIDTHS = ("hidden_size", "embedding_size", "word_embed_proj_dim")
DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
SIZES = {
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 96),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size", "moe_intermediate_size"), 96),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "max_position_embeddings", "sliding_window"), 64),
    "rotary_dim": HEAD_SIZE // 2,
    "num_experts_per_tok": 2,
}
"""The sizes of a copy, by the names that transformers' attribute maps give them: enough to read a few words."""


def miniature(config: PreTrainedConfig) -> PreTrainedModel:
    """A small copy of the model of `config`, in float32 and eval mode; its weights are as they are before training.

    Raises:
        ModelError: The copy's sizes make no model of this architecture.
    """
    small: PreTrainedConfig = copy.deepcopy(config)
    for part in (small, *(value for value in vars(small).values() if isinstance(value, PreTrainedConfig))):
        _shrink(part)
    return random_model(small)


def _shrink(config: PreTrainedConfig) -> None:
    common = {own: name for name, own in config.attribute_map.items()}
    lists = {len(value) for value in vars(config).values() if isinstance(value, list | tuple)}
    heads, head_size = getattr(config, "num_attention_heads", None), HEAD_SIZE
    if heads and "[" in str(getattr(config, "rope_parameters", None)):  # a factor for each pair fixes a head's size
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes = SIZES | dict.fromkeys(WIDTHS, HEADS * head_size) | {"head_dim": head_size}
    for own, value in [(own, value) for own, value in vars(config).items() if type(value) is int]:
        name = common.get(own, own)
        if name in DEPTHS:  # layers keep their number where a list says something of each
            setattr(config, own, value if value in lists else min(value, 2))
        elif name in ("num_key_value_heads", "num_kv_heads"):
            setattr(config, own, HEADS if value == heads else min(value, HEADS // 2))
        elif name.endswith("_token_id"):  # below the token that is read; some models count positions from the padding
            setattr(config, own, min(value, 4))
        else:
            setattr(config, own, sizes.get(name, value))

"""A tiny config of any model type: the config class's own attributes, each made small by what its name says it is.

Every width is 32, so that the parts of a model that meet fit each other, and a stack has one layer of each kind that
its lists name. What a type needs besides stands in `own_sizes.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from tests.tiny import VOCABULARY, tiny_tokenizer
from tests.zoo.own_sizes import NEEDED, OF_MODEL, OF_TYPE

WIDTH, INNER, HEADS, KEY_VALUE_HEADS, HEAD_DIM, LAYERS, EXPERTS, POSITIONS = 32, 48, 4, 2, 16, 2, 4, 128

RULES: Sequence[tuple[str, int]] = (
    (r".*vocab(_size)?(_.*)?", VOCABULARY),
    (r"max_.*positions?(_embeddings)?|n_positions|n_ctx|.*context_length|max_seq_len|seq_len|rel_extent", POSITIONS),
    (r"max_num_patches|max_depth|max_temporal_embeddings|max_xpath_.*|latent_query_num", HEAD_DIM),
    (r"original_max_position_embeddings", POSITIONS // 4),
    (r"num_dense_layers|first_k_dense_replace|n_shared_experts|.*num_shared_experts|zero_expert_num", 1),
    (r"(num_)?(hidden_|encoder_|decoder_)?layers|n_layers?|.*_layers|num_blocks|depths?", LAYERS),
    (r".*(head_dim|headdim|head_size|d_head|d_kv|dim_head|lora_rank|kv_channels|dt_rank|step_rank)", HEAD_DIM),
    (r"rotary_dim", WIDTH // HEADS),
    (r"(d_|ssm_)?state(_size)?|.*d_state", HEAD_DIM),
    (r".*(key_value|kv|key)(_n)?_heads|num_ln_in_.*", KEY_VALUE_HEADS),
    (r".*n_?groups|.*_groups?|topk_group", 2),
    (r".*(experts_per_tok(en)?|moe_k|moe_topk|moe_top_k|top_k_experts)", 2),
    (r"index(er)?_topk|keep_window_size", POSITIONS),  # what is chosen among equals differs by rounding: all is
    (r"index_block_size", 8),
    (r".*experts", EXPERTS),
    (r".*(heads?|n_head)(_per_layer)?", HEADS),
    (r".*(intermediate|ffn|feed_forward|d_ff|dff|dim_ff|d_inner|n_inner|mlp_dim).*", INNER),
    (
        r".*(window(_size|_len)?|attention_window|chunk_size|local_attention|local_radius|attn_chunk_length|block_size)",
        8,
    ),
    (r"image_size|resolution|input_size", 32),
    (r"patch_size", 8),
    (r"num_position_embeddings|pos_emb_.*|posemb_.*", HEAD_DIM),
    (r".*(hidden_sizes?|hidden_dim|d_model|n_embd|emb(ed)?_dim|embedding_(size|dim)|d_latents|lru_width)", WIDTH),
    (r"hidden_size_per_layer_input|hc_lowrank|.*bottleneck_size", WIDTH),
    (r".*(_dim|_channels?|out_channel|hidden_dimension|num_embeddings|output_size)|dim|base_channels", WIDTH),
)
"""The names of sizes, and what each is at most; the first that matches counts."""
TOKEN = r".*(_token_id|_token_index|_patch_id|im_.*_id)"
EXACT: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "logits_soft_cap": 3.0,
    "output_logit_soft_cap": 3.0, "logit_scale": 0.5, "logits_scaling": 2.0, "lm_head_multiplier": 0.5,
    "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "attention_multiplier": 0.3,
}  # fmt: skip
"""What must show in the outputs of a model that has it."""
DERIVED = ("qk_head_dim", "id2label", "label2id", "model_type", "transformers_version")
"""What a config makes of its other values."""
CHANCE = r".*(drop|jitter).*"
"""What would make two runs of one model differ: it is zero."""


def shrunk(value: int, name: str) -> int:
    """A size made small by its name; what no rule knows stays."""
    for pattern, size in RULES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


def tiny_config(model_type: str, group: str = "causal", **overrides: Any) -> PreTrainedConfig:
    """A tiny config of a type, for its model of a group (`models.GROUPS`)."""
    default = default_config(model_type)
    values = arguments(default, top=True) | OF_MODEL.get((model_type, group), {})
    if group == "classification":
        values["num_labels"] = 3
    if group == "causal" and "is_decoder" in vars(default) and not default.is_encoder_decoder:
        values["is_decoder"] = True  # without it an encoder's class for text looks at what is to come
    return CONFIG_MAPPING[model_type](**(values | overrides))


def default_config(model_type: str) -> PreTrainedConfig:
    """The config that a type's class makes of nothing, or of the little that it needs."""
    return CONFIG_MAPPING[model_type](**NEEDED.get(model_type, {}))


def arguments(config: PreTrainedConfig, *, top: bool = False) -> dict[str, Any]:
    """The keyword arguments that make a config of the same class small."""
    chosen, count = layer_kinds(config), layer_count(config)
    plain = vars(config) if top else vars(type(config)(**NEEDED.get(config.model_type, {})))
    values: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            values[name] = {"model_type": value.model_type, **arguments(value)}
        elif not name.startswith("_") and name not in DERIVED:
            small = tiny_value(name, value, chosen, count)
            if small != plain.get(name):
                values[name] = small
    if (named := config.attribute_map.get("num_hidden_layers", "num_hidden_layers")) in vars(config):
        values[named] = len(chosen)
    if vars(config).get("head_dim", 0) is None:
        values["head_dim"] = WIDTH // HEADS
    if vars(config).get("kv_lora_rank") is not None:
        values["num_key_value_heads"] = HEADS  # keys and values come of one latent vector, for every head its own
        values.pop("head_dim", None)  # the sum of its two parts
    if config.is_heterogeneous:
        values["per_layer_config"] = tiny_layers(
            config.to_dict()["per_layer_config"], chosen, vars(config) | values, vars(config)
        )
    return values | special_tokens(config, top=top) | OF_TYPE.get(config.model_type, {})


def tiny_value(name: str, value: Any, chosen: Sequence[int], count: int) -> Any:
    """The value of an attribute in a config that is small, with the layers that are `chosen` of `count`."""
    if isinstance(value, list | tuple) and len(value) == count and count > LAYERS:
        indices = list(value) == list(range(count))
        return list(range(len(chosen))) if indices else [sized(value[layer], name) for layer in chosen]
    if isinstance(value, float) and re.fullmatch(CHANCE, name):
        return 0.0
    if name == "rope_parameters" and value:
        return tiny_rope(value)
    return EXACT.get(name, sized(value, name))


def sized(value: Any, name: str) -> Any:
    """A size, or a list of sizes, made small by its name."""
    if isinstance(value, list | tuple):
        return type(value)(sized(one, name) for one in value)
    return shrunk(value, name) if isinstance(value, int) and not isinstance(value, bool) else value


def layer_count(config: PreTrainedConfig) -> int:
    """How many layers a config names; 0 where it says nothing."""
    return int(getattr(config, "num_hidden_layers", 0) or 0)


def layer_kinds(config: PreTrainedConfig) -> list[int]:
    """The first layer of each kind, by all lists with one entry a layer; at least two layers."""
    count = layer_count(config)
    lists = [v for n, v in vars(config).items() if isinstance(v, list) and len(v) == count and v != list(range(count))]
    layers = {int(layer): own for layer, own in config.to_dict().get("per_layer_config", {}).items()}
    kinds: dict[str, int] = {}
    for layer in range(count):
        kinds.setdefault(repr([[one[layer] for one in lists], layers.get(layer)]), layer)
    chosen = sorted(kinds.values())
    return chosen if len(chosen) >= LAYERS else list(range(min(count, LAYERS)))


def tiny_layers(
    own: Mapping[str, Mapping[str, Any]], chosen: Sequence[int], small: Mapping[str, Any], large: Mapping[str, Any]
) -> dict[int, Any]:
    """The sizes of the layers that have their own, as much larger or smaller than the others' as they were."""
    layers = {int(layer): values for layer, values in own.items()}
    return {
        new: {
            name: max(1, small[name] * value // large[name]) if isinstance(value, int) else value
            for name, value in layers[old].items()
        }
        for new, old in enumerate(chosen)
        if old in layers
    }


def tiny_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions of short texts, with their sections and factors for the small heads."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {kind: tiny_rope(own) if own else own for kind, own in rope.items()}
    pairs = int(HEAD_DIM * rope.get("partial_rotary_factor", 1.0)) // 2
    small = dict(rope)
    for name, value in rope.items():
        if name == "mrope_section":
            section = [pairs * one // sum(value) for one in value]
            small[name] = [pairs - sum(section[1:]), *section[1:]]
        elif name in ("short_factor", "long_factor"):
            small[name] = [1.0] * pairs
        elif isinstance(value, int) and not isinstance(value, bool):
            small[name] = shrunk(value, name)
    return small


def special_tokens(config: PreTrainedConfig, *, top: bool) -> dict[str, int | None]:
    """The tokens that a config names: those of text are the tiny tokenizer's, each other has an id that no text has."""
    tokenizer = tiny_tokenizer()
    own = {"bos": tokenizer.eos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    ids: dict[str, int | None] = {f"{name}_token_id": token for name, token in own.items()}
    ids |= {"decoder_start_token_id": tokenizer.pad_token_id, "forced_eos_token_id": None, "forced_bos_token_id": None}
    given = {name: token for name, token in ids.items() if hasattr(config, name) or (top and name in ids)}
    others = [n for n, v in vars(config).items() if re.fullmatch(TOKEN, n) and n not in ids and isinstance(v, int)]
    return given | {name: VOCABULARY - 1 - place for place, name in enumerate(sorted(others))}

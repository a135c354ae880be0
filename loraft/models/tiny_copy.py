"""A tiny model of the same architecture, for experiments on what a config alone does not say; and what they share.

Its sizes are shrunk where their names are known, its weights are random and so large that every part of it shows in
what it gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.errors import ModelError
from loraft.models.auto_model import meta_model, random_model
from loraft.models.hf_config import reason
from loraft.models.modules import parameter_count

MOST_PARAMETERS = 20_000_000
"""A copy with more is no longer tiny: it would take seconds to make."""
ROWS = 128
"""Of a table of tokens or of positions: more than a row of an experiment needs, however few the model has."""
WINDOW = 4
"""Tokens that a window or a chunk of attention spans: fewer than a row of an experiment has."""
DEPTHS = (2, 4, 8)
"""How many layers are tried, at least: a kind of layer may come only after several of another."""
HEADS = 4
WIDTHS = (
    "hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size", "attention_hidden_size",
    "embedding_dim", "emb_dim", "lru_width",
)  # fmt: skip
INNER = (
    "hidden_dim", "intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
)  # fmt: skip
OF_HEADS = (
    "head_dim", "d_kv", "kv_channels", "d_head", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim",
    "v_head_dim", "mamba_d_state", "hidden_size_per_layer_input",
)  # fmt: skip
SIZES = {
    **dict.fromkeys(WIDTHS, 64), **dict.fromkeys(INNER, 96), **dict.fromkeys(OF_HEADS, 16),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "mamba_d_head", "qk_head_dim"), 32),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "mamba_n_heads"), HEADS),
    **dict.fromkeys(("n_group", "num_group", "topk_group", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    "rotary_dim": 8,
}  # fmt: skip
"""What sizes are set to where a config has them and they are larger."""
NUMBERS_OF_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_layers_per_stack",
)  # fmt: skip


def tiny_copy(config: PreTrainedConfig) -> PreTrainedModel | None:
    """A tiny float32 model of the architecture on the CPU, in eval mode; None where no way of shrinking makes one.

    Raises:
        ModelError: However it is shrunk, its forward asks for the same thing beside text.
    """
    refusals = set[str]()
    for depth, narrow in product(DEPTHS, (True, False)):
        try:
            small = shrunk(config, depth, narrow=narrow)
            if parameter_count(meta_model(small)) > MOST_PARAMETERS:
                continue
            model = random_model(small)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                for parameter in model.parameters():
                    _scale(parameter)
                refusal = _refusal(model)
        except Exception:  # whatever goes wrong with these sizes: the next way may do
            continue
        if refusal is None:
            return model
        refusals.add(refusal)
    if len(refusals) == 1:
        raise not_on_text(config, refusals.pop())
    return None


def _refusal(model: PreTrainedModel) -> str | None:
    """What a forward asks for beside text; None where it takes it."""
    ids = torch.arange(1, 9)[None]
    read = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
    for options in ({"use_cache": False}, {}):
        try:
            model(**read, **options)
        except (TypeError, ValueError) as error:
            refusal = reason(error)
        else:
            return None
    return refusal


def not_on_text(config: PreTrainedConfig, why: str) -> ModelError:
    """An architecture that is not trained on text alone."""
    message = f"model type {config.model_type!r} is not trained on text alone: {why}"
    return ModelError(message, key="model.name_or_path", remedy="Choose another model.")


def _scale(parameter: torch.Tensor) -> None:
    """Matrices get outputs of about their inputs' size; what begins at one or zero is moved off it."""
    if not parameter.is_floating_point():
        return
    if parameter.dim() > 1:
        parameter.normal_(std=min(1.5 / parameter.shape[-1] ** 0.5, 0.3))
    else:
        parameter.add_(torch.randn_like(parameter), alpha=0.1)


def shrunk(config: PreTrainedConfig, depth: int, *, narrow: bool = True, keeps_lists: bool = False) -> PreTrainedConfig:
    """The config with fewer layers, and where it is to be `narrow` with smaller sizes and tables.

    Where it says something of each layer they are all there if it `keeps_lists`, and else those that show each kind.
    Not all are narrow: there are architectures whose sizes depend on one another in a way of their own. It is made
    again from its values, so that whatever its class derives from them is derived anew.
    """
    values = copy.deepcopy(config.to_dict())
    for part in _parts(values):
        part.update(_depth(part, depth, keeps_lists=keeps_lists))
        if narrow:
            part.update(_sizes(part) | _tables(part))
    made = type(config)(**{name: value for name, value in values.items() if name != "model_type"})
    made.is_decoder = getattr(config, "is_decoder", False)  # which is not among the values that it writes
    return made


def _parts(values: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [
        value
        for name, value in values.items()
        if isinstance(value, dict) and (name.endswith("_config") or "model_type" in value)
    ]
    return [values, *(part for value in inner for part in _parts(value))]


def _sizes(part: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: min(part[name], size) for name, size in SIZES.items() if isinstance(part.get(name), int)}
    heads = next((part[name] for name in ("num_attention_heads", "n_head") if isinstance(part.get(name), int)), None)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if isinstance(groups := part.get(name), int) and heads:
            small = min(heads, HEADS)
            sizes[name] = small if groups == heads else 1 if groups == 1 else max(1, small // 2)
    windows = {
        name: min(value, WINDOW)
        for name, value in part.items()
        if type(value) is int and ("window" in name or name == "attention_chunk_size")
    }
    if {"expand", "num_heads", "head_dim", "hidden_size"} <= part.keys():  # Mamba-2's heads share what it expands to
        sizes["head_dim"] = sizes["hidden_size"] * part["expand"] // sizes["num_heads"]
    if "mamba_d_ssm" in part:
        sizes["mamba_d_ssm"] = sizes["mamba_n_heads"] * sizes["mamba_d_head"]
    if heads and "[" in str(part.get("rope_parameters")):  # a factor for each pair fixes a head's size
        size = part.get("head_dim") or part["hidden_size"] // heads
        sizes |= {"head_dim": size, "hidden_size": size * min(heads, HEADS)}
    return sizes | windows


def _depth(part: dict[str, Any], least: int, *, keeps_lists: bool) -> dict[str, Any]:
    """As many layers as show each kind of layer that there is; what is said of each layer for those alone."""
    kinds = part.get("layer_types")
    keep = max(least, *(kinds.index(kind) + 1 for kind in set(kinds))) if isinstance(kinds, list) and kinds else least
    changed: dict[str, Any] = {}
    for name in NUMBERS_OF_LAYERS:
        if isinstance(part.get(name), int) and part[name] > keep:
            lists = {key: value for key, value in part.items() if isinstance(value, list) and len(value) == part[name]}
            if lists and keeps_lists:
                continue
            changed |= {name: keep, **{key: value[:keep] for key, value in lists.items()}}
    if changed and isinstance(each := part.get("per_layer_config"), dict):
        changed["per_layer_config"] = {key: value for key, value in each.items() if int(key) < keep}
    if changed and part.get("num_kv_shared_layers"):
        changed["num_kv_shared_layers"] = 0
    return changed


def _tables(part: dict[str, Any]) -> dict[str, Any]:
    rows = {
        name: ROWS
        for name, value in part.items()
        if type(value) is int and ("vocab_size" in name or name in ("max_position_embeddings", "n_positions"))
    }
    ids: dict[str, Any] = {
        name: value % ROWS
        for name, value in part.items()
        if name.endswith("_token_id") and isinstance(value, int) and value >= ROWS
    }
    ends = part.get("eos_token_id")
    if isinstance(ends, list):
        ids["eos_token_id"] = [each % ROWS for each in ends if isinstance(each, int)]
    return rows | ids


SHORT, LONG = 7, 13
"""The rows of experiments: longer than the windows of a tiny copy."""
CLOSE = 1e-4
"""How far from one another results may be that differ by rounding alone, in parts of how far they spread."""


def tried(experiment: Callable[..., bool], *given: Any) -> bool:
    """Whether an experiment went well: what an architecture cannot do, it refuses in a way of its own."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return experiment(*given)
    except Exception:
        return False


def random_row(model: PreTrainedModel, length: int = LONG) -> Tensor:
    """A row of tokens that are no special ones, `[1, length]`."""
    generator = torch.Generator().manual_seed(length)
    vocabulary = model.config.get_text_config().vocab_size
    row = torch.randint(vocabulary // 4, vocabulary - 1, (1, length), generator=generator)
    if model.config.is_encoder_decoder and isinstance(end := model.config.eos_token_id, int):
        row[:, -1] = end  # where BART's classifier decides
    return row


def text_read(model: PreTrainedModel, length: int = LONG) -> dict[str, Tensor]:
    """Such a row as all that a forward reads: with its mask, and as what a decoder says too."""
    row = random_row(model, length)
    target = {"decoder_input_ids": row} if model.config.is_encoder_decoder else {}
    return {"input_ids": row, "attention_mask": torch.ones_like(row), **target}


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same but for rounding, and show something."""
    spread = float(one.std())
    return spread > 1e-3 and bool(torch.allclose(one, other, rtol=CLOSE, atol=CLOSE * spread))

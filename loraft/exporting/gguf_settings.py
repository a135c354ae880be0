"""What llama.cpp computes with besides weights: a config as the keys of a GGUF file, and the factors of rope.

What a config asks for and llama.cpp would not do is refused here, before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loraft.errors import ModelError
from loraft.exporting.gguf_families import SETTINGS, GgufFamily

Value = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
"""What a key of a GGUF file can hold here."""
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class GgufSettings:
    """What a config comes to.

    Attributes:
        values: The keys without the architecture in front.
        factors: The tensors of factors that rope's wavelengths are multiplied by, by their names in the file; each is
            `[rotated / 2]`.
        notes: What a person should know, a sentence each.
    """

    values: dict[str, Value] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def settings_of(config: PreTrainedConfig, family: GgufFamily, where: str) -> GgufSettings:
    """The settings of a model, if llama.cpp computes what its config says.

    Raises:
        ModelError: It does not.
    """
    unlike = [*_other_computation(config, family), *_other_layers(config, family)]
    if unlike:
        raise _refused(unlike[0], where)
    found = GgufSettings()
    for attribute, key in {**SETTINGS, **family.settings}.items():
        value = getattr(config, attribute, None)
        if value is not None:
            found.values[key] = value
    head = head_dim(config)
    found.values.update({"attention.key_length": head, "attention.value_length": head})
    if family.window_every is None:
        _cut_to_window(config, found)
    _add_rope(config, family, found, where)
    return found


def head_dim(config: PreTrainedConfig) -> int:
    """The numbers of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _refused(what: str, where: str) -> ModelError:
    remedy = "Use it with `loraft.generate`, or fold the adapter in by `loraft.merge` for a server that runs it."
    return ModelError(f"llama.cpp does not compute this model as transformers does: {what}", where=where, remedy=remedy)


def _other_computation(config: PreTrainedConfig, family: GgufFamily) -> Iterator[str]:
    """In what the numbers of a model are computed otherwise."""
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation != family.activation:
        yield f"its activation is {activation}, and llama.cpp has {family.activation} in {family.architecture}"
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if family.by_width_at is not None and scalar is not None:
        by_width = config.num_hidden_layers == family.by_width_at
        theirs = config.hidden_size // config.num_attention_heads if by_width else head_dim(config)
        if scalar != theirs:
            yield f"its attention is scaled by query_pre_attn_scalar {scalar}, and there by {theirs}"
    if getattr(config, "use_bidirectional_attention", None):
        yield "its attention looks ahead (use_bidirectional_attention)"
    if not family.own_head_dim and head_dim(config) * config.num_attention_heads != config.hidden_size:
        yield f"its heads have {head_dim(config)} numbers, and there hidden_size / num_attention_heads"
    if not family.ties and config.tie_word_embeddings:
        yield f"its head is its embeddings, and {family.architecture} has one of its own there"


def _other_layers(config: PreTrainedConfig, family: GgufFamily) -> Iterator[str]:
    """In what the kinds of a model's layers stand otherwise."""
    layers = range(config.num_hidden_layers)
    if family.window_every is not None:
        theirs = [FULL if layer % family.window_every == family.window_every - 1 else SLIDING for layer in layers]
        if list(config.layer_types) != theirs:
            yield f"llama.cpp lets every layer whose number divides by {family.window_every} attend to all positions"
    if family.rope_every is not None:
        with_rope = [0 if layer % family.rope_every == family.rope_every - 1 else 1 for layer in layers]
        if [int(bool(each)) for each in config.no_rope_layers] != with_rope:
            yield f"llama.cpp leaves rope out of every layer whose number divides by {family.rope_every}, and no other"


def _cut_to_window(config: PreTrainedConfig, found: GgufSettings) -> None:
    """Let the context end with the sliding window, where llama.cpp has none: within it both attend to the same."""
    kinds = getattr(config, "layer_types", None)
    slides = SLIDING in kinds if kinds is not None else True
    window = getattr(config, "sliding_window", None) if slides else None
    if window is None or window >= config.max_position_embeddings:
        return
    found.values["context_length"] = int(window)
    found.notes.append(
        f"llama.cpp has no sliding window in this family: the file's context is the window, {window:,} tokens, "
        f"and not {config.max_position_embeddings:,}"
    )


def _add_rope(config: PreTrainedConfig, family: GgufFamily, found: GgufSettings, where: str) -> None:
    """The keys of rope, and its factors."""
    given: Mapping[str, Any] = config.rope_parameters
    if FULL in given:
        found.values["rope.freq_base_swa"] = float(given[SLIDING]["rope_theta"])
        if given[SLIDING].get("rope_type", "default") != "default":
            raise _refused("its rope is scaled in layers with a sliding window", where)
        layer_type, given = FULL, given[FULL]
    else:
        layer_type = None
    rotated = int(head_dim(config) * given.get("partial_rotary_factor", 1.0))
    if rotated != head_dim(config) and not family.partial_rope:
        raise _refused("its rope turns a part of each head", where)
    found.values.update({"rope.freq_base": float(given["rope_theta"]), "rope.dimension_count": rotated})
    kind = given.get("rope_type", "default")
    if kind == "linear":
        found.values.update({"rope.scaling.type": "linear", "rope.scaling.factor": float(given["factor"])})
    elif kind == "llama3" and family.rope_factors:
        own, _ = ROPE_INIT_FUNCTIONS[kind](config, layer_type=layer_type)
        plain = given["rope_theta"] ** (-torch.arange(0, rotated, 2, dtype=torch.float32) / rotated)
        found.factors["rope_freqs.weight"] = plain / own
    elif kind == "yarn":
        found.values.update(_yarn(given, where))
    elif kind == "longrope" and family.long_rope:
        _add_longrope(config, given, found)
    elif kind != "default":
        raise _refused(f"its rope is scaled by {kind!r}, which {family.architecture} does not do there", where)


def _yarn(given: Mapping[str, Any], where: str) -> dict[str, Value]:
    """The keys of YaRN. Source: Peng et al. 2023 (https://arxiv.org/abs/2309.00071)."""
    factor = float(given["factor"])
    usual, own = 0.1 * math.log(factor) + 1.0, given.get("attention_factor")
    mscales = given.get("mscale") and given.get("mscale_all_dim")
    if mscales or not given.get("truncate", True) or (own is not None and not math.isclose(own, usual, rel_tol=1e-4)):
        raise _refused("its YaRN has an attention factor, mscale or truncate of its own", where)
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(given["original_max_position_embeddings"]),
        "rope.scaling.yarn_beta_fast": float(given.get("beta_fast") or 32),
        "rope.scaling.yarn_beta_slow": float(given.get("beta_slow") or 1),
    }


def _add_longrope(config: PreTrainedConfig, given: Mapping[str, Any], found: GgufSettings) -> None:
    """The keys and factors of LongRoPE. Source: Ding et al. 2024 (https://arxiv.org/abs/2402.13753), section 3."""
    original = int(given.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    scale = config.max_position_embeddings / original
    attention = given.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    found.values.update(
        {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": float(attention)}
    )
    for name in ("long", "short"):
        found.factors[f"rope_factors_{name}.weight"] = torch.tensor(given[f"{name}_factor"], dtype=torch.float32)
    found.notes.append(
        f"llama.cpp takes rope's long factors wherever its context is set to more than {original:,} tokens, "
        "and transformers where a text is longer"
    )

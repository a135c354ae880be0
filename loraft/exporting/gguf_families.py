"""The families that llama.cpp computes as transformers does: what differs between the two, as data.

Source: llama.cpp, src/models/*.cpp and conversion/*.py. Each row is held by a comparison of a tiny model's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from loraft.errors import ModelError

NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class GgufFamily:
    """One row: a model type of transformers in llama.cpp.

    Attributes:
        architecture: What llama.cpp calls it.
        rotates_pairs: Rope turns neighbouring numbers of a head, where transformers turns halves: the rows of q and k
            are put in that order.
        norm_offset: What is added to the weights of norms, which transformers adds while it computes.
        activation: The only one that llama.cpp computes in it.
        window_every: Every so many layers one attends to all positions, and the others within the sliding window; None
            where llama.cpp has no window in this family.
        rope_every: Every so many layers one has no rope; None where all have it.
        by_width_at: A model of so many layers has its attention scaled by hidden_size / heads, and others by head_dim;
            None where llama.cpp asks nobody but head_dim, as transformers does.
        settings: What is in the file besides, by the attributes of the config: the keys behind the architecture.
        biases: The parts of a layer that llama.cpp reads a bias of.
        own_head_dim: Heads may be of another size than hidden_size / heads.
        rope_factors: Rope's wavelengths may have factors each.
        long_rope: It has LongRoPE, with one list of factors for short contexts and one for long ones.
        partial_rope: Rope may turn a part of each head.
        ties: The head may be the embeddings.
    """

    architecture: str
    rotates_pairs: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    window_every: int | None = None
    rope_every: int | None = None
    by_width_at: int | None = None
    settings: Mapping[str, str] = field(default_factory=lambda: NONE)
    biases: tuple[str, ...] = ()
    own_head_dim: bool = True
    rope_factors: bool = False
    long_rope: bool = False
    partial_rope: bool = False
    ties: bool = True


SETTINGS: Mapping[str, str] = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""What the file of every family has, by the attributes of the config."""
WINDOW = {"sliding_window": "attention.sliding_window"}
GELU = "gelu_pytorch_tanh"
GRANITE = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
GEMMA3 = {"final_logit_softcapping": "final_logit_softcapping", **WINDOW}
GEMMA2 = {"attn_logit_softcapping": "attn_logit_softcapping", **GEMMA3}

QKV = ("attn_q", "attn_k", "attn_v")
ALL_LINEAR = (*QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LLAMA = GgufFamily("llama", rotates_pairs=True, biases=ALL_LINEAR, rope_factors=True)

GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": GgufFamily("qwen2", biases=QKV, own_head_dim=False),
    "qwen3": GgufFamily("qwen3"),
    "gemma": GgufFamily("gemma", norm_offset=1.0, activation=GELU),
    "gemma2": GgufFamily("gemma2", norm_offset=1.0, activation=GELU, window_every=2, by_width_at=46, settings=GEMMA2),
    "gemma3_text": GgufFamily(
        "gemma3", norm_offset=1.0, activation=GELU, window_every=6, by_width_at=62, settings=GEMMA3
    ),
    "phi3": GgufFamily("phi3", own_head_dim=False, long_rope=True, partial_rope=True),
    "smollm3": GgufFamily("smollm3", rotates_pairs=True, rope_every=4),
    "granite": GgufFamily("granite", rotates_pairs=True, settings=GRANITE, biases=ALL_LINEAR, rope_factors=True),
    "olmo2": GgufFamily("olmo2", own_head_dim=False, ties=False),
    "seed_oss": GgufFamily("seed_oss", biases=QKV),
    "arcee": GgufFamily("arcee", rotates_pairs=True, activation="relu2", rope_factors=True),
}
"""The rows, by transformers' model_type."""


def family_of(model_type: str, where: str) -> GgufFamily:
    """The row of a model type.

    Raises:
        ModelError: There is none.
    """
    if model_type in GGUF_FAMILIES:
        return GGUF_FAMILIES[model_type]
    known = ", ".join(sorted(GGUF_FAMILIES))
    message = f"model type {model_type!r} is none that loraft writes as GGUF; it writes {known}"
    remedy = "Fold the adapter in by `loraft.merge`: llama.cpp's convert_hf_to_gguf.py may know the folder's type."
    raise ModelError(message, where=where, remedy=remedy)

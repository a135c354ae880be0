"""The one table of architectures: what differs between models, as data.

This module knows names: where a family keeps its layers, what its projections are called, and what stands around
its head. It refuses to know weights, and it loads without torch. Everywhere else a difference between two
architectures is a column here, never a comparison of `model_type`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from loraft.errors import ModelError

__all__ = ["FAMILIES", "TRAINED", "Family", "Kind", "family_of"]

Kind = Literal["decoder", "encoder", "encoder_decoder"]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        model_type: The name in the model's config.json.
        layers_path: The path of the list of layers, from the model with its head; of an encoder-decoder the decoder's.
        attention: The attention's projections, as suffixes of their paths inside a layer.
        mlp: The feed-forward part's projections, likewise, for what the attention's do not match. Both together are all
            linear modules of a layer.
        kind: decoder (generates), encoder (does not), or encoder_decoder.
        encoder_path: The path of the list of the encoder's layers, of an encoder-decoder.
        experts: The feed-forward part's experts, as the suffix of their path inside a layer: one tensor for all of
            them, which LoRA on linear modules cannot adapt.
        packs: Rows can be laid end to end: attention goes through transformers' `AttentionInterface`, the forward's
            keyword arguments reach it, and positions come from `position_ids`.
        final_softcap: The config's attribute with the cap c of the logits, c · tanh(logits / c); its value may be None.
        logit_multiplier: The config's attribute that the logits are multiplied by.
        logit_divisor: The config's attribute that the logits are divided by.
        stable_in_float16: Its trained models compute in float16 without overflow; those for which this is False
            vLLM refuses in float16 too.
        same_input: Linear modules side by side that are given the same tensor, in the order of their calls. Training
            takes their products together where this is so; a layer need not have them all.
    """

    model_type: str
    layers_path: str = "model.layers"
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    kind: Kind = "decoder"
    encoder_path: str | None = None
    experts: str | None = None
    packs: bool = True
    final_softcap: str | None = None
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    stable_in_float16: bool = True
    same_input: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

    @property
    def stacks(self) -> Mapping[str, str]:
        """The paths of its lists of layers, by what they are: `encoder`, `decoder`."""
        if self.encoder_path is not None:
            return {"encoder": self.encoder_path, "decoder": self.layers_path}
        return {self.kind: self.layers_path}

    @property
    def generates(self) -> bool:
        """Whether it makes text token by token."""
        return self.kind != "encoder"


NEOX_MLP = ("dense_h_to_4h", "dense_4h_to_h")
GPT2_ATTENTION = ("attn.c_attn", "attn.c_proj")
GPT2_MLP = ("mlp.c_fc", "mlp.c_proj")
BART = ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")
BERT_ATTENTION = ("self.query", "self.key", "self.value", "attention.output.dense")

TABLE = (
    Family("llama"),
    Family("mistral"),
    Family("ministral3"),
    Family("qwen2"),
    Family("qwen3"),
    Family("gemma"),
    Family("gemma2", final_softcap="final_logit_softcapping", stable_in_float16=False),
    Family("gemma3_text", final_softcap="final_logit_softcapping", stable_in_float16=False),
    Family("phi", attention=("q_proj", "k_proj", "v_proj", "dense"), mlp=("fc1", "fc2")),
    Family("phi3", attention=("qkv_proj", "o_proj"), mlp=("gate_up_proj", "down_proj")),
    Family("gpt2", "transformer.h", GPT2_ATTENTION, GPT2_MLP),
    Family("gpt_bigcode", "transformer.h", GPT2_ATTENTION, GPT2_MLP),
    Family("gpt_neox", "gpt_neox.layers", ("attention.query_key_value", "attention.dense"), NEOX_MLP),
    Family("opt", "model.decoder.layers", ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")),
    Family("bloom", "transformer.h", ("self_attention.query_key_value", "self_attention.dense"), NEOX_MLP, packs=False),
    Family("granite", logit_divisor="logits_scaling"),
    Family("cohere", logit_multiplier="logit_scale"),
    Family("cohere2", logit_multiplier="logit_scale"),
    Family("olmo"),
    Family("olmo2"),
    Family("olmo3"),
    Family("smollm3"),
    Family("starcoder2", mlp=("c_fc", "c_proj")),
    Family("stablelm", packs=False),
    Family("glm4", mlp=("gate_up_proj", "down_proj"), stable_in_float16=False),
    Family("exaone4"),
    Family("seed_oss"),
    Family("arcee", mlp=("up_proj", "down_proj")),
    Family("mixtral", mlp=(), experts="mlp.experts", packs=False),
    Family("t5", "decoder.block", ("q", "k", "v", "o"), ("wi", "wi_0", "wi_1", "wo"), "encoder_decoder",
           "encoder.block", packs=False, stable_in_float16=False),
    Family("bart", "model.decoder.layers", *BART, "encoder_decoder", "model.encoder.layers", packs=False),
    Family("marian", "model.decoder.layers", *BART, "encoder_decoder", "model.encoder.layers", packs=False),
    Family("bert", "bert.encoder.layer", BERT_ATTENTION, ("intermediate.dense", "output.dense"), "encoder",
           packs=False),
    Family("distilbert", "distilbert.transformer.layer", ("q_lin", "k_lin", "v_lin", "out_lin"), ("lin1", "lin2"),
           "encoder", packs=False),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in TABLE})
"""Every family that loraft knows, by model_type: those that it looks into, runs or merges."""
TRAINED: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in TABLE if family.kind == "decoder" and family.experts is None}
)
"""The families that loraft trains, by model_type; each passes the parity tests with a tiny model."""

ENCODER_HINTS = ("bert", "electra", "mpnet", "roformer")
ENCODER_DECODERS = (
    "bart", "bigbird_pegasus", "blenderbot", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp", "pegasus",
    "plbart", "prophetnet", "t5", "t5gemma", "udop", "umt5", "whisper",
)  # fmt: skip
MIXTURE_HINTS = ("moe", "mixtral", "deepseek", "dbrx", "jetmoe", "gpt_oss", "llama4", "qwen3_next", "glm4_5")
"""Parts of the names of model types: encoders, and those whose feed-forward part is a mixture of experts."""


def family_of(model_type: str, among: Mapping[str, Family] = TRAINED) -> Family:
    """The row of the table for a model type.

    Args:
        model_type: As config.json has it.
        among: The families that will do: those that loraft trains, or all `FAMILIES`.

    Raises:
        ModelError: The type is not among them: a mixture of experts, an encoder, an encoder-decoder, or unknown.
    """
    if model_type in among:
        return among[model_type]
    supported = f"Supported model types: {', '.join(sorted(among))}."
    near = difflib.get_close_matches(model_type, among, n=1, cutoff=0.75)
    if model_type.endswith("_vision") or f"{model_type}_text" in among:
        raise ModelError(_text_only(model_type), key="model.name_or_path", remedy=supported)
    remedy = f"The nearest is {near[0]}. {supported}" if near else supported
    raise ModelError(_why_not(model_type, among), key="model.name_or_path", remedy=remedy)


def _text_only(model_type: str) -> str:
    return f"model type {model_type!r} reads images as well as text, and loraft trains models of text alone"


def _why_not(model_type: str, among: Mapping[str, Family]) -> str:
    if among is TRAINED:
        if model_type in ENCODER_DECODERS:
            return f"model type {model_type!r} is an encoder-decoder, and loraft trains decoder-only models"
        if any(hint in model_type for hint in ENCODER_HINTS):
            return (
                f"model type {model_type!r} is an encoder: it does not generate text, "
                "and loraft trains decoder-only models"
            )
        if any(hint in model_type for hint in MIXTURE_HINTS):
            return f"model type {model_type!r} is a mixture of experts, and loraft does not train those"
    return f"model type {model_type!r} is not one that loraft knows"

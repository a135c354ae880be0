"""The one table of architectures: what differs between models, as data.

A row says where an architecture keeps its layers, what its projections are called, and what stands around its head.
Everywhere else a difference between two architectures is a column here, never a comparison of `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

from loraft.config.choices import TASKS_OF_GROUP, ModelGroup
from loraft.errors import ModelError

Kind = Literal["decoder", "encoder", "encoder_decoder"]
Caching = Literal["keys", "own", "none"]


@dataclass(frozen=True)
class ModelSpec:
    """One row of the table.

    Attributes:
        layers_path: The path of the list of layers, from the model with its head; of an encoder-decoder the decoder's.
        attention: The attention's projections, as suffixes of their paths inside a layer.
        mlp: The feed-forward part's projections, likewise, for what the attention's do not match. Both together are all
            linear modules of a layer.
        classifier: The modules of a classification head over the model, the one that gives the scores last: all that
            stands behind the layers and their final norm. They are trained whole, and those that a base lacks begin at
            random. Empty where transformers has no classifier of the family.
        experts: The feed-forward part's experts, as the suffix of their path inside a layer: one tensor for all of
            them, which LoRA on linear modules cannot adapt.
        packs_experts: These are read by their own module alone, so that they can be dequantized while it computes.
        routers: The linear modules that choose experts, as paths inside a layer: adapted only where they are named.
        unreached: The linear modules and the tensors of experts that the outputs do not come through, as paths inside a
            layer: never adapted.
        alone: Padding changes what it makes of a row, so that each row is read by itself.
        text_mark: The input of its forward, and the value of that, without which a row is not read as text alone.
        plain: What stands around its head is not known: the loss is computed from the logits of the model itself.
        caching: How it keeps what it has read while it writes: `keys` in a cache that is handed to it, `own` in one
            that it makes itself; `none` reads all again with each token.
        pads_left: Rows of different lengths can be answered together, padded on the left.
        rewinds: What it has read can be cut back to any length: keys and values can, a recurrent state cannot.
        unknown: What no experiment established, a clause each, and what is done instead.
        packs: Rows can be laid end to end: attention goes through transformers' `AttentionInterface`, the forward's
            keyword arguments reach it, and positions come from `position_ids`.
        final_softcap: The config's attribute with the cap c of the logits, c · tanh(logits / c); its value may be None.
        logit_multiplier: The config's attribute that the logits are multiplied by.
        logit_divisor: The config's attribute that the logits are divided by.
        scales_if: The config's flag that scales the decoder's last hidden states by 1 / √hidden_size.
        logits_bias: The model's attribute `[1, vocab]` that is added to the logits.
        spare_positions: Positions of the learned table that no token takes, so that rows are that much shorter.
        prefixed: Its models were trained with words before each source that say what to do.
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
    classifier: tuple[str, ...] = ("score",)
    experts: str | None = None
    packs_experts: bool = True
    routers: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    alone: bool = False
    text_mark: tuple[str, int] | None = None
    plain: bool = False
    caching: Caching = "keys"
    pads_left: bool = True
    rewinds: bool = True
    unknown: tuple[str, ...] = ()
    packs: bool = True
    final_softcap: str | None = None
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    scales_if: str | None = None
    logits_bias: str | None = None
    spare_positions: int = 0
    prefixed: bool = False
    stable_in_float16: bool = True
    same_input: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

    @property
    def stacks(self) -> Mapping[str, str]:
        """The paths of its lists of layers, by what they are: `encoder`, `decoder`."""
        if self.encoder_path is not None:
            return {"encoder": self.encoder_path, "decoder": self.layers_path}
        return {self.kind: self.layers_path}

    @property
    def group(self) -> ModelGroup:
        """What models of the family are taken for where nothing else is said."""
        return "classifier" if self.kind == "encoder" else self.kind

    @property
    def generates(self) -> bool:
        """Whether it makes text token by token."""
        return self.kind != "encoder"


class LayerPlace(NamedTuple):
    """Where a module or a parameter lies: its stack, its layer, and its path in that; -1 is outside of the layers."""

    stack: str
    layer: int
    inside: str


def place_in(stacks: Mapping[str, str], name: str) -> LayerPlace:
    """The place of a full name, by the path of each stack."""
    for stack, path in stacks.items():
        if name.startswith(f"{path}."):
            layer, _, inside = name.removeprefix(f"{path}.").partition(".")
            return LayerPlace(stack, int(layer), inside)
    return LayerPlace("", -1, "")


Names = tuple[tuple[str, ...], tuple[str, ...]]
"""What the projections of the attention and of the feed-forward part are called."""
NEOX_MLP = ("dense_h_to_4h", "dense_4h_to_h")
GPT2_ATTENTION = ("attn.c_attn", "attn.c_proj")
GPT2_MLP = ("mlp.c_fc", "mlp.c_proj")
BERT = ("self.query", "self.key", "self.value", "attention.output.dense"), ("intermediate.dense", "output.dense")
DEBERTA = ("self.query_proj", "self.key_proj", "self.value_proj", "attention.output.dense"), BERT[1]
DISTILBERT = ("q_lin", "k_lin", "v_lin", "out_lin"), ("lin1", "lin2")
BART = ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")
T5 = ("q", "k", "v", "o"), ("wi", "wi_0", "wi_1", "wo")


def _encoder(model_type: str, path: str, names: Names, classifier: tuple[str, ...], **columns: Any) -> ModelSpec:
    return ModelSpec(model_type, path, *names, "encoder", classifier=classifier, packs=False, **columns)


def _two_stacks(
    model_type: str,
    names: Names,
    encoder: str = "model.encoder.layers",
    decoder: str = "model.decoder.layers",
    **columns: Any,
) -> ModelSpec:
    # In cross-attention k and v read another tensor than q: computed together, two of three products would be lost.
    return ModelSpec(
        model_type, decoder, *names, "encoder_decoder", encoder, classifier=(), packs=False, same_input=(), **columns
    )


TABLE = (
    ModelSpec("llama"),
    ModelSpec("mistral"),
    ModelSpec("ministral3"),
    ModelSpec("qwen2"),
    ModelSpec("qwen3"),
    ModelSpec("gemma"),
    ModelSpec("gemma2", final_softcap="final_logit_softcapping", stable_in_float16=False),
    ModelSpec("gemma3_text", final_softcap="final_logit_softcapping", stable_in_float16=False),
    ModelSpec("phi", attention=("q_proj", "k_proj", "v_proj", "dense"), mlp=("fc1", "fc2")),
    ModelSpec("phi3", attention=("qkv_proj", "o_proj"), mlp=("gate_up_proj", "down_proj")),
    ModelSpec("gpt2", "transformer.h", GPT2_ATTENTION, GPT2_MLP),
    ModelSpec("gpt_bigcode", "transformer.h", GPT2_ATTENTION, GPT2_MLP),
    ModelSpec("gpt_neox", "gpt_neox.layers", ("attention.query_key_value", "attention.dense"), NEOX_MLP),
    ModelSpec("opt", "model.decoder.layers", ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")),
    ModelSpec(
        "bloom", "transformer.h", ("self_attention.query_key_value", "self_attention.dense"), NEOX_MLP, packs=False
    ),
    ModelSpec("granite", classifier=(), logit_divisor="logits_scaling"),
    ModelSpec("cohere", classifier=(), logit_multiplier="logit_scale"),
    ModelSpec("cohere2", classifier=(), logit_multiplier="logit_scale"),
    ModelSpec("olmo"),
    ModelSpec("olmo2"),
    ModelSpec("olmo3"),
    ModelSpec("smollm3"),
    ModelSpec("starcoder2", mlp=("c_fc", "c_proj")),
    ModelSpec("stablelm", packs=False),
    ModelSpec("glm4", mlp=("gate_up_proj", "down_proj"), stable_in_float16=False),
    ModelSpec("exaone4"),
    ModelSpec("seed_oss"),
    ModelSpec("arcee", mlp=("up_proj", "down_proj")),
    ModelSpec("mixtral", mlp=(), experts="mlp.experts"),
    _two_stacks(
        "t5", T5, "encoder.block", "decoder.block",
        scales_if="scale_decoder_outputs", prefixed=True, stable_in_float16=False,
    ),
    _two_stacks("mt5", T5, "encoder.block", "decoder.block", stable_in_float16=False),
    _two_stacks("bart", BART, logits_bias="final_logits_bias"),
    _two_stacks("mbart", BART, logits_bias="final_logits_bias"),
    _two_stacks("m2m_100", BART),
    _two_stacks("marian", BART, logits_bias="final_logits_bias"),
    _encoder("bert", "bert.encoder.layer", BERT, ("bert.pooler", "classifier")),
    _encoder("roberta", "roberta.encoder.layer", BERT, ("classifier",), spare_positions=2),
    _encoder("xlm-roberta", "roberta.encoder.layer", BERT, ("classifier",), spare_positions=2),
    _encoder("deberta-v2", "deberta.encoder.layer", DEBERTA, ("pooler", "classifier"), stable_in_float16=False),
    _encoder("distilbert", "distilbert.transformer.layer", DISTILBERT, ("pre_classifier", "classifier")),
)  # fmt: skip
FAMILIES: Mapping[str, ModelSpec] = {spec.model_type: spec for spec in TABLE}
"""Every family that loraft knows, by model_type: those that it looks into, runs or merges."""
DECODERS: Mapping[str, ModelSpec] = {name: spec for name, spec in FAMILIES.items() if spec.kind == "decoder"}
"""The decoders that loraft trains to go on with a text; each passes the parity tests with a tiny model."""
TWO_STACKS: Mapping[str, ModelSpec] = {n: spec for n, spec in FAMILIES.items() if spec.kind == "encoder_decoder"}
"""The encoder-decoders that it trains, likewise."""
CLASSIFIERS: Mapping[str, ModelSpec] = {name: spec for name, spec in FAMILIES.items() if spec.classifier}
"""The families that it trains to classify, likewise."""
GROUPS: Mapping[ModelGroup, Mapping[str, ModelSpec]] = {
    "decoder": DECODERS, "encoder_decoder": TWO_STACKS, "classifier": CLASSIFIERS,
}  # fmt: skip

KINDS: Mapping[Kind, str] = {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder-decoder"}
NEEDS: Mapping[ModelGroup, str] = {
    "decoder": "needs a decoder",
    "encoder_decoder": "needs an encoder-decoder",
    "classifier": "needs a family that transformers has a classifier of",
}


def row_of(model_type: str, group: ModelGroup | None = None) -> ModelSpec | None:
    """The row of the table for a model type that is used as `group`, or as whatever it is; None where it has none.

    Raises:
        ModelError: The table has it for another use.
    """
    known = FAMILIES.get(model_type)
    if known is None or group is None or model_type in GROUPS[group]:
        return known
    return refuse_kind(model_type, known.kind, group, known.group)


def refuse_kind(model_type: str, kind: Kind, group: ModelGroup, other: ModelGroup | None) -> NoReturn:
    """Say that models of a kind cannot be used as `group`, and which task takes them, if any does.

    Raises:
        ModelError: Always.
    """
    tasks = " or ".join(TASKS_OF_GROUP[group])
    message = f"model type {model_type!r} is {KINDS[kind]}, and task: {tasks} {NEEDS[group]}"
    raise ModelError(message, key="model.name_or_path", remedy=taken_by(other))


def taken_by(group: ModelGroup | None) -> str:
    """The remedy where a model is used otherwise than as what it is."""
    return f"Write task: {' or '.join(TASKS_OF_GROUP[group])}." if group else "Choose another model."

"""The anatomy of a model on the meta device: what it is made of, how large each part is, how it is stored.

Numbers of heads and widths come from the shapes of its modules where the table of families names those, and from its
config otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.config.sections import QuantizationSection
from loraft.errors import ModelError
from loraft.inspection.norms import Norms, norms_of
from loraft.inspection.positions import PositionEncoding, position_encoding
from loraft.inspection.storage import COMPUTED_IN, Storage, bytes_of
from loraft.models.hf_config import configured_positions
from loraft.models.modules import linear_modules, matches, output_head, parameter_count
from loraft.models.quantize import experts_in_4_bits, quantizable_modules, quantized_bytes
from loraft.models.registry import Kind, ModelSpec

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation", "dense_act_fn")
HEADS = ("num_attention_heads", "num_key_value_heads", "attention", "head_size", "sliding_window")
PARTS = ("embeddings", "positions", "attention", "feed_forward", "norms", "head", "other")


@dataclass(frozen=True)
class Stack:
    """A list of equal layers: `encoder` or `decoder`.

    Attributes:
        path: Where the model with its head has it, in Python.
        bare_path: Where the bare model (AutoModel) has it.
    """

    name: str
    path: str
    bare_path: str
    layers: int
    layer_class: str


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward part.

    Attributes:
        size: Its inner width.
        gated: Whether one inner product gates another: three matrices in place of two; None where that is not known.
        activation: What stands between them.
        ratio: The size over the hidden size.
    """

    size: int | None
    gated: bool | None
    activation: str | None
    ratio: float | None


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of one feed-forward part.

    Attributes:
        count: Experts in a layer.
        active: How many of them a token goes through.
        parameters: What all of them hold, in all layers.
    """

    count: int
    active: int
    parameters: int


@dataclass(frozen=True)
class ForQLoRA:
    """The weights as QLoRA keeps them: linear modules in NF4 with double quantization, the rest in 16 bits.

    Attributes:
        parameters: Those that are in 4 bits.
        bytes: Of all weights, with the constants of their blocks.
    """

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of, by the names and in the order of the document.

    Attributes:
        architecture: The class that was looked at.
        attention: MHA (each query head has a key/value head), GQA (several share one) or MQA (all share one). It and
            the numbers of heads are None where the config names no heads.
        sliding_window: A token sees this many at most, in the layers that have a window; None where none has.
        norms: None where they were not found out.
        tied_embeddings: Whether head and embedding are one tensor; None for a model without a head.
        context_length: The longest text that its config speaks of; None where it speaks of none.
        parameters: All numbers, tied ones once.
        active_parameters: The numbers that a token meets: of the experts only those that it goes through.
        dtypes: For each part its numbers by dtype.
        bytes_by_dtype: The bytes of all parameters as they are stored.
        dtype_source: What that is known from.
        qlora: None for a model that cannot be quantized.
        kv_cache_bytes_per_token: In the dtype that most is stored in; None for a model that does not generate, or
            whose cache has another form.
    """

    model_type: str
    architecture: str
    kind: Kind
    stacks: tuple[Stack, ...]
    hidden_size: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    attention: str | None
    head_size: int | None
    sliding_window: int | None
    feed_forward: FeedForward
    experts: Experts | None
    norms: Norms | None
    vocabulary: int | None
    tied_embeddings: bool | None
    context_length: int | None
    position_encoding: PositionEncoding
    parameters: int
    active_parameters: int
    parameters_by_part: Mapping[str, int]
    dtypes: Mapping[str, Mapping[str, int]]
    bytes: int
    bytes_by_dtype: Mapping[str, int]
    dtype_source: str
    qlora: ForQLoRA | None
    kv_cache_bytes_per_token: int | None
    kv_cache_dtype: str


def anatomy_of(model: PreTrainedModel, family: ModelSpec, storage: Storage) -> Anatomy:
    """Take a model on the meta device apart; its family has the paths of this class."""
    config = model.config.get_text_config()
    positions = position_encoding(model, family.stacks, storage.tensor)
    dtypes = _numbers_by_part(model, family, {table.name for table in positions.tables}, storage.dtype_of)
    whole: Counter[str] = sum((Counter(count) for count in dtypes.values()), Counter())
    ordered = [dtype for dtype, _ in whole.most_common()]
    usual = next((dtype for dtype in ordered if dtype in COMPUTED_IN), ordered[0])
    bytes_by_dtype = {dtype: int(count * bytes_of(dtype)) for dtype, count in whole.most_common()}
    stacks = []
    for name, path in family.stacks.items():
        layers = list(model.get_submodule(path).children())
        bare = path.removeprefix(f"{model.base_model_prefix}.")
        stacks.append(Stack(name, path, bare, len(layers), type(layers[0]).__name__))
    layer = linear_modules(model.get_submodule(f"{family.layers_path}.0"))
    heads = _heads(layer, family, config)
    parameters, experts = parameter_count(model), _experts(model, family, config)
    idle = experts.parameters * (experts.count - experts.active) // experts.count if experts else 0
    # Encoders have no cache, and some decoders one of another form (latent, recurrent).
    has_cache = family.generates and heads and not getattr(config, "kv_lora_rank", None)
    numbers = stacks[-1].layers * 2 * heads["num_key_value_heads"] * heads["head_size"] if has_cache else None
    return Anatomy(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        kind=family.kind,
        stacks=tuple(stacks),
        hidden_size=getattr(config, "hidden_size", None),
        **(heads or dict.fromkeys(HEADS)),
        feed_forward=_feed_forward(model, layer, family, config),
        experts=experts,
        norms=norms_of(model.config, family),
        vocabulary=getattr(config, "vocab_size", None),
        tied_embeddings=_tied(model),
        context_length=configured_positions(config, "n_positions", "seq_length"),
        position_encoding=positions,
        parameters=parameters,
        active_parameters=parameters - idle,
        parameters_by_part={part: sum(count.values()) for part, count in dtypes.items()},
        dtypes=dtypes,
        bytes=sum(bytes_by_dtype.values()),
        bytes_by_dtype=bytes_by_dtype,
        dtype_source=storage.source,
        qlora=_for_qlora(model, family, parameters),
        kv_cache_bytes_per_token=None if numbers is None else int(numbers * bytes_of(usual)),
        kv_cache_dtype=usual,
    )


def _for_qlora(model: PreTrainedModel, family: ModelSpec, parameters: int) -> ForQLoRA | None:
    try:
        names = quantizable_modules(model)
    except ModelError:
        return None
    shapes = linear_modules(model)
    section = QuantizationSection()
    experts = sum(model.get_parameter(name).numel() for name in experts_in_4_bits(model, family, section))
    quantized = experts + sum(math.prod(shapes[name]) for name in names)
    in_few_bits = quantized_bytes(quantized, sum(shapes[name][1] for name in names), section)
    return ForQLoRA(quantized, in_few_bits + 2 * (parameters - quantized))


def _heads(layer: Mapping[str, tuple[int, int]], family: ModelSpec, config: PreTrainedConfig) -> dict[str, Any]:
    """Heads by the (in, out) of the projections: what queries, keys and values have more than the output is theirs."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return {}
    found = (next((shape for name, shape in layer.items() if matches(name, part)), None) for part in family.attention)
    if projections := [shape for shape in found if shape is not None]:
        *inputs, output = projections  # the output's comes last in the table
        head_size = output[0] // heads
        shared = (sum(shape[1] for shape in inputs) - heads * head_size) // (2 * head_size)
    else:
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        shared = getattr(config, "num_key_value_heads", None) or heads
    kind = {heads: "MHA", 1: "MQA"}.get(shared, "GQA")
    return dict(zip(HEADS, (heads, shared, kind, head_size, _window(config)), strict=True))


def _window(config: PreTrainedConfig) -> int | None:
    """The sliding window, where a layer has one: some configs name a window that none of their layers uses."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    used = any("sliding" in kind for kind in kinds) if kinds else getattr(config, "use_sliding_window", True)
    return int(window) if isinstance(window, int) and used else None


def _feed_forward(
    model: PreTrainedModel, layer: Mapping[str, tuple[int, int]], family: ModelSpec, config: PreTrainedConfig
) -> FeedForward:
    inside = {name: shape for name, shape in layer.items() if not matches(name, *family.attention)}
    shapes = [shape for part in family.mlp for name, shape in inside.items() if matches(name, part)]
    activation = next((value for name in ACTIVATIONS if isinstance(value := getattr(config, name, None), str)), None)
    if activation is None:
        modules = model.get_submodule(f"{family.layers_path}.0").modules()
        activation = next((type(one).__name__ for one in modules if "lu" in type(one).__name__.lower()[-4:]), None)
    if shapes:
        size: int | None = shapes[-1][0]
        gated: bool | None = sum(shape[1] for shape in shapes[:-1]) == 2 * shapes[-1][0]
    else:
        said = getattr(config, "intermediate_size", None)
        size, gated = said if isinstance(said, int) else None, True if family.experts else None
    hidden = getattr(config, "hidden_size", None)
    return FeedForward(size, gated, activation, round(size / hidden, 2) if size and hidden else None)


def _experts(model: PreTrainedModel, family: ModelSpec, config: PreTrainedConfig) -> Experts | None:
    if family.experts is None:
        return None
    start, inside = f"{family.layers_path}.", f".{family.experts}."
    held = [weight for name, weight in model.named_parameters() if name.startswith(start) and inside in name]
    count = next((weight.shape[0] for weight in held if weight.dim() == 3), 0)
    active = getattr(config, "num_experts_per_tok", None)
    return Experts(count, int(active or count), sum(weight.numel() for weight in held))


def _tied(model: PreTrainedModel) -> bool | None:
    head = output_head(model)
    embedding = model.get_input_embeddings()
    if head is None or not isinstance(embedding, nn.Module):
        return None
    return any(one is other for one in head.parameters() for other in embedding.parameters())


def _numbers_by_part(
    model: PreTrainedModel, family: ModelSpec, tables: set[str], dtype_of: Callable[[str], str]
) -> Mapping[str, Mapping[str, int]]:
    """How many numbers each part has, by dtype: by classes and by the table of families.

    A tensor that head and embedding share is the embedding's; `tables` are the parameters that tell positions.
    """
    counts = {part: Counter[str]() for part in PARTS}
    modules = dict(model.named_modules())
    layers = tuple(f"{path}." for path in family.stacks.values())
    attention = tuple(_around_attention(model, family))
    base = f"{model.base_model_prefix}."
    has_base = any(name.startswith(base) for name in modules)
    head = output_head(model)
    outermost = next((name for name, module in modules.items() if module is head), "").partition(".")[0]
    looked_up = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    for name, weight in model.named_parameters():
        if name in tables:
            part = "positions"
        elif "norm" in type(modules.get(name.rpartition(".")[0])).__name__.lower():
            part = "norms"
        elif name.startswith(layers):
            part = "attention" if name.startswith(attention) else "feed_forward"
        elif id(weight) in looked_up:
            part = "embeddings"
        else:
            around = (has_base and not name.startswith(base)) or name.partition(".")[0] == outermost
            part = "head" if around else "other"
        counts[part][dtype_of(name)] += weight.numel()
    return {part: dict(count) for part, count in counts.items() if count}


def _around_attention(model: nn.Module, family: ModelSpec) -> set[str]:
    """The modules around the projections of attention, in every layer, as the beginnings of names.

    In a family that the table does not have they are known by their names; `attention_norm` and the like are norms and
    known by their class.
    """
    around = set()
    for path in family.stacks.values():
        stack = model.get_submodule(path)
        if family.attention:
            held = (name for name in linear_modules(stack) if matches(name, *family.attention))
            around |= {f"{path}.{name.rpartition('.')[0]}." for name in held}
        else:
            ends = ((name, name.rpartition(".")[2].lower()) for name, _ in stack.named_modules())
            around |= {f"{path}.{name}." for name, end in ends if "attn" in end or "attention" in end}
    return around

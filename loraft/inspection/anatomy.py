"""The anatomy of a model: what it is made of, how large each part is, how it is stored.

This module reads a model on the meta device, so that a model of any size is looked at in the time that its config
takes. Numbers of heads and widths come from the shapes of its modules where the table of families names those, and from
its config otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.adapters.targets import depths
from loraft.inspection.norms import Norms, miniature, norms_in
from loraft.inspection.parameter_counts import DTYPE_BYTES, Storage, numbers_by_part
from loraft.inspection.positions import PositionEncoding, position_encoding
from loraft.models.modules import linear_modules, matches, output_head, parameter_count
from loraft.models.registry import Kind, ModelSpec

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation", "dense_act_fn")
CONTEXTS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")


@dataclass(frozen=True)
class Stack:
    """A list of equal layers.

    Attributes:
        name: `encoder` or `decoder`.
        path: Where the model with its head has it, in Python.
        bare_path: Where the bare model (AutoModel) has it.
        layers: How many there are.
        layer_class: Their class.
    """

    name: str
    path: str
    bare_path: str
    layers: int
    layer_class: str


@dataclass(frozen=True)
class AttentionShape:
    """The heads of attention.

    Attributes:
        kind: MHA (each query head has a key/value head), GQA (several share one) or MQA (all share one).
        heads: Query heads.
        key_value_heads: Key/value heads.
        head_size: Numbers in each.
        window: A token sees this many at most, in the layers that have a window; None where none has.
    """

    kind: Literal["MHA", "GQA", "MQA"]
    heads: int
    key_value_heads: int
    head_size: int
    window: int | None


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward part.

    Attributes:
        size: Its inner width.
        gated: Whether one inner product gates another: three matrices in place of two; None where that is not known.
        activation: What stands between them.
    """

    size: int | None
    gated: bool | None
    activation: str | None


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
class Anatomy:
    """What a model is made of.

    Attributes:
        model_type: As its config has it.
        architecture: The class that was looked at.
        kind: decoder, encoder or encoder_decoder.
        stacks: Its lists of layers.
        hidden_size: The width between layers.
        attention: Its heads.
        feed_forward: Its feed-forward part.
        experts: Its experts; None for a model without them.
        norms: Its norms; None where they were not found out.
        vocabulary: Rows of the token embedding.
        tied: Whether head and embedding are one tensor; None for a model without a head.
        context_length: The longest text that its config speaks of; None where it speaks of none.
        positions: How it tells positions apart.
        parameters: All numbers, tied ones once.
        parameters_by_part: Embeddings, positions, attention, feed-forward, norms, head, other.
        dtypes: For each part its numbers by dtype.
        bytes_by_dtype: The bytes of all parameters as they are stored.
        stored: What that is known from.
        kv_cache_bytes: What the cache grows by with each token, in the dtype that most is stored in; None for a model
            that does not generate, or whose cache has another form.
        kv_cache_dtype: That dtype.
    """

    model_type: str
    architecture: str
    kind: Kind
    stacks: tuple[Stack, ...]
    hidden_size: int | None
    attention: AttentionShape | None
    feed_forward: FeedForward
    experts: Experts | None
    norms: Norms | None
    vocabulary: int | None
    tied: bool | None
    context_length: int | None
    positions: PositionEncoding
    parameters: int
    parameters_by_part: Mapping[str, int]
    dtypes: Mapping[str, Mapping[str, int]]
    bytes_by_dtype: Mapping[str, int]
    stored: str
    kv_cache_bytes: int | None
    kv_cache_dtype: str

    @property
    def active_parameters(self) -> int:
        """The numbers that a token meets: of the experts only those that it goes through."""
        if self.experts is None:
            return self.parameters
        return self.parameters - self.experts.parameters * (self.experts.count - self.experts.active) // (
            self.experts.count
        )


def anatomy_of(model: PreTrainedModel, family: ModelSpec, storage: Storage) -> Anatomy:
    """Take a model on the meta device apart.

    Args:
        model: On the meta device.
        family: Its row, with the paths that this class has.
        storage: How its tensors are stored.
    """
    config = model.config.get_text_config()
    positions = position_encoding(model, family.stacks, storage.tensor)
    tables = frozenset(table.name for table in positions.tables)
    dtypes = numbers_by_part(model, family, tables, storage.dtype_of)
    whole: Counter[str] = sum((Counter(count) for count in dtypes.values()), Counter())
    attention = _attention(model, family, config)
    usual = whole.most_common(1)[0][0]
    return Anatomy(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        kind=family.kind,
        stacks=_stacks(model, family),
        hidden_size=getattr(config, "hidden_size", None),
        attention=attention,
        feed_forward=_feed_forward(model, family, config),
        experts=_experts(model, family, config),
        norms=_norms(model.config, family),
        vocabulary=getattr(config, "vocab_size", None),
        tied=_tied(model),
        context_length=_context_length(config),
        positions=positions,
        parameters=parameter_count(model),
        parameters_by_part={part: sum(count.values()) for part, count in dtypes.items()},
        dtypes=dtypes,
        bytes_by_dtype={dtype: count * DTYPE_BYTES.get(dtype, 4) for dtype, count in whole.most_common()},
        stored=storage.source,
        kv_cache_bytes=_kv_cache_bytes(model, family, config, attention, usual),
        kv_cache_dtype=usual,
    )


def _stacks(model: PreTrainedModel, family: ModelSpec) -> tuple[Stack, ...]:
    found = []
    for name, path in family.stacks.items():
        layers = list(model.get_submodule(path).children())
        bare = path.removeprefix(f"{model.base_model_prefix}.")
        found.append(Stack(name, path, bare, len(layers), type(layers[0]).__name__))
    return tuple(found)


def _attention(model: PreTrainedModel, family: ModelSpec, config: PreTrainedConfig) -> AttentionShape | None:
    """Heads by the shapes of the projections: what queries, keys and values have more than the output is theirs."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None
    projections = _first_of_each(family.attention, model, family)
    if projections:
        *inputs, output = projections
        head_size = output[0] // heads
        key_value_heads = (sum(shape[1] for shape in inputs) - heads * head_size) // (2 * head_size)
    else:
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    kind: Literal["MHA", "GQA", "MQA"] = "MHA" if key_value_heads == heads else "MQA" if key_value_heads == 1 else "GQA"
    return AttentionShape(kind, heads, key_value_heads, head_size, _window(config))


def _context_length(config: PreTrainedConfig) -> int | None:
    written = (getattr(config, name, None) for name in CONTEXTS)
    return next((value for value in written if isinstance(value, int) and value > 0), None)


def _window(config: PreTrainedConfig) -> int | None:
    """The sliding window, where a layer has one: some configs name a window that none of their layers uses."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    used = any("sliding" in kind for kind in kinds) if kinds else getattr(config, "use_sliding_window", True)
    return int(window) if isinstance(window, int) and used else None


def _first_of_each(suffixes: tuple[str, ...], model: PreTrainedModel, family: ModelSpec) -> list[tuple[int, int]]:
    """The (in, out) of the first linear module of each name in a layer; the output's comes last in the table."""
    layer = linear_modules(model.get_submodule(f"{family.layers_path}.0"))
    found = (next((shape for name, shape in layer.items() if matches(name, suffix)), None) for suffix in suffixes)
    return [shape for shape in found if shape is not None]


def _feed_forward(model: PreTrainedModel, family: ModelSpec, config: PreTrainedConfig) -> FeedForward:
    layer = linear_modules(model.get_submodule(f"{family.layers_path}.0"))
    inside = {name: shape for name, shape in layer.items() if not any(matches(name, part) for part in family.attention)}
    shapes = [shape for part in family.mlp for name, shape in inside.items() if matches(name, part)]
    activation = next((value for name in ACTIVATIONS if isinstance(value := getattr(config, name, None), str)), None)
    if activation is None:
        modules = model.get_submodule(f"{family.layers_path}.0").modules()
        activation = next((type(one).__name__ for one in modules if "lu" in type(one).__name__.lower()[-4:]), None)
    if not shapes:
        size = getattr(config, "intermediate_size", None)
        return FeedForward(size if isinstance(size, int) else None, True if family.experts else None, activation)
    *_, (size, _) = shapes
    return FeedForward(size, sum(shape[1] for shape in shapes[:-1]) == 2 * size, activation)


def _experts(model: PreTrainedModel, family: ModelSpec, config: PreTrainedConfig) -> Experts | None:
    if family.experts is None:
        return None
    held = [
        weight
        for name, weight in model.named_parameters()
        if name.startswith(f"{family.layers_path}.") and f".{family.experts}." in name
    ]
    count = next((weight.shape[0] for weight in held if weight.dim() == 3), 0)
    active = getattr(config, "num_experts_per_tok", None)
    return Experts(count, int(active or count), sum(weight.numel() for weight in held))


def _norms(config: PreTrainedConfig, family: ModelSpec) -> Norms | None:
    try:
        copy = miniature(config)
        layers = list(copy.get_submodule(family.layers_path).children())
        ids = torch.tensor([[5, 7, 11, 13, 17]])
        inputs: dict[str, Tensor] = {"input_ids": ids}
        if len(family.stacks) > 1:
            inputs["decoder_input_ids"] = ids
        return norms_in(copy, layers, inputs)
    except Exception:  # a model that is not in the table may not run at other sizes; positions say why
        return None


def _tied(model: PreTrainedModel) -> bool | None:
    head = output_head(model)
    embedding = model.get_input_embeddings()
    if head is None or not isinstance(embedding, nn.Module):
        return None
    return any(one is other for one in head.parameters() for other in embedding.parameters())


def _kv_cache_bytes(
    model: PreTrainedModel, family: ModelSpec, config: PreTrainedConfig, attention: AttentionShape | None, dtype: str
) -> int | None:
    """Keys and values of each layer; None for encoders, and for caches of another form (latent, recurrent)."""
    if not family.generates or attention is None or getattr(config, "kv_lora_rank", None):
        return None
    layers = list(depths(model, family).values())[-1]
    return layers * 2 * attention.key_value_heads * attention.head_size * DTYPE_BYTES.get(dtype, 4)

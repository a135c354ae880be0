"""What goes on inside a model while it reads: the size of its residual stream, and where its heads look.

An attention map is `[heads, queries, keys]`; each is reduced to a few numbers a head as soon as its layer has made it,
and given up, so that at most one is held. Attention is computed as plain products for this: what is faster has no maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraft.models.model_structure import placed_layers
from loraft.models.registry import ModelSpec


@dataclass(frozen=True)
class HeadAttention:
    """Where one head looks, as means over the queries that have a choice: causally all but the first.

    Attributes:
        entropy: Of a query's weights over its keys, in nats: 0 looks at one key, ln n at n keys alike.
        entropy_share: That, in parts of the greatest possible, ln of the keys in sight.
        distance: How many tokens away the keys are, by weight; None in cross-attention, where that means nothing.
        distance_past_first: The same without the first token, which much attention goes to that needs no other key.
        first_token: The weight of the first key.
    """

    head: int
    entropy: float
    entropy_share: float
    distance: float | None
    distance_past_first: float | None
    first_token: float


@dataclass(frozen=True)
class LayerActivations:
    """What a layer gives, and where its heads look.

    Attributes:
        norm: ‖h‖ of the residual stream behind the layer, a mean over the tokens after the first.
        first_norm: ‖h‖ at the first token, which in many models is another order of magnitude.
        change: ‖h - h before‖ / ‖h before‖, a mean over the tokens after the first.
        heads: Of self-attention; none where a single token was read.
        cross_heads: Of the attention to what the encoder gave; none without an encoder.
    """

    stack: str
    index: int
    norm: float
    first_norm: float
    change: float
    heads: tuple[HeadAttention, ...]
    cross_heads: tuple[HeadAttention, ...]


@dataclass(frozen=True)
class StackActivations:
    """What a stack of layers read.

    Attributes:
        causal: Each token sees itself and those before it; otherwise all see all.
        norm: ‖h‖ in front of the first layer, a mean over the tokens after the first.
        first_norm: The same at the first token.
        distance_if_even: How many tokens away the keys would be if each in sight had the same weight.
    """

    name: str
    tokens: int
    causal: bool
    norm: float
    first_norm: float
    distance_if_even: float | None


def head_attention(weights: Tensor, in_sight: Tensor, *, crosses: bool = False) -> tuple[HeadAttention, ...]:
    """Where each head looks.

    Args:
        weights: `[heads, queries, keys]`, each query's sum is 1.
        in_sight: `[queries, keys]`, the keys that a query may look at.
        crosses: Queries and keys are of different texts.
    """
    queries, keys = in_sight.shape
    choices = in_sight.sum(1)
    chosen = choices > 1
    if not bool(chosen.any()):
        return ()
    most = choices[chosen].float().log()
    place = torch.arange(keys, device=weights.device)
    away = (place[:queries, None] - place).abs()[chosen].float() if not crosses else None
    found = []
    for head, row in enumerate(weights):  # a head at a time: what is made on the way is as small as that
        p = row[chosen].float()
        entropy = torch.special.entr(p).sum(1)
        distance = beyond = None
        if away is not None:
            distance = (p * away).sum(1).mean().item()
            rest = p[:, 1:].sum().item()
            beyond = (p * away)[:, 1:].sum().item() / rest if rest > 0 else None
        share = (entropy / most).mean().item()
        found.append(HeadAttention(head, entropy.mean().item(), share, distance, beyond, p[:, 0].mean().item()))
    return tuple(found)


def keys_in_sight(queries: int, keys: int, *, causal: bool, window: int | None = None) -> Tensor:
    """`[queries, keys]`, the keys that a query may look at; a window is itself and the `window - 1` before it."""
    every = torch.ones(queries, keys, dtype=torch.bool)
    if not causal:
        return every
    return every.tril() if window is None else every.tril() & every.triu(1 - window)


@dataclass(eq=False)
class ActivationWatch:
    """Listens to the layers of a model while it runs once, on one row without padding.

    Attributes:
        stacks: What each stack read, once it has run.
        layers: What each layer gave, in the order in which they ran.
    """

    model: PreTrainedModel
    family: ModelSpec
    stacks: list[StackActivations] = field(default_factory=list)
    layers: list[LayerActivations] = field(default_factory=list)
    _maps: list[tuple[HeadAttention, ...]] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the model runs, with attention as plain products; afterwards as it was."""
        attention = self.model.config._attn_implementation
        with ExitStack() as hooks:
            for (stack, index), layer in placed_layers(self.model, self.family.stacks):
                gave = partial(self._layer, stack, index)
                hooks.enter_context(layer.register_forward_hook(gave, with_kwargs=True))
                for module in (each for each in layer.modules() if each is not layer):
                    hooks.enter_context(module.register_forward_hook(partial(self._attention, stack)))
            if attention != "eager":
                self.model.set_attn_implementation("eager")
                hooks.callback(self.model.set_attn_implementation, attention)
            yield

    def _attention(self, stack: str, module: nn.Module, _: object, output: object) -> object:
        """Take the map out of what an attention gives: a layer's own part of a tuple, and its last."""
        weights = output[-1] if isinstance(output, tuple) else None
        if not isinstance(weights, Tensor) or weights.dim() != 4:
            return None
        assert isinstance(output, tuple)
        crosses = stack == "decoder" and self.family.encoder_path is not None and bool(self._maps)
        window = getattr(module, "sliding_window", getattr(self.model.config, "sliding_window", None))
        causal = stack == "decoder" and not crosses
        in_sight = keys_in_sight(*weights.shape[-2:], causal=causal, window=window if causal else None)
        self._maps.append(head_attention(weights[0], in_sight.to(weights.device), crosses=crosses))
        return (*output[:-1], None)

    def _layer(
        self, stack: str, index: int, _: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], output: object
    ) -> None:
        read: Tensor = args[0] if args else kwargs["hidden_states"]
        given = output[0] if isinstance(output, tuple) else output
        assert isinstance(given, Tensor)
        before, after = read[0].float(), given[0].float()
        norms, first = _norms(after)
        if index == 0:
            tokens, causal = len(before), stack == "decoder"
            sight = keys_in_sight(tokens, tokens, causal=causal)
            even = head_attention((sight / sight.sum(1, keepdim=True))[None], sight)
            distance = even[0].distance if even else None
            self.stacks.append(StackActivations(stack, tokens, causal, *_norms(before), distance))
        changes = ((after - before).norm(dim=1) / before.norm(dim=1))[min(1, len(before) - 1) :]
        own, cross = (*self._maps, (), ())[:2]
        self._maps = []
        self.layers.append(LayerActivations(stack, index, norms, first, changes.mean().item(), own, cross))


def _norms(states: Tensor) -> tuple[float, float]:
    """Of `[tokens, hidden]`, the mean norm of the tokens after the first, and the norm of the first."""
    norms = states.norm(dim=1)
    return norms[min(1, len(norms) - 1) :].mean().item(), norms[0].item()


@torch.inference_mode()
def watch_activations(
    model: PreTrainedModel, family: ModelSpec, ids: Sequence[int], decoder_ids: Sequence[int] = ()
) -> ActivationWatch:
    """Let a model read one row of tokens once, and tell what went on in its layers.

    Args:
        model: The model itself, with adapters in it where there are any, in eval mode.
        family: Its row of the table.
        ids: What it reads; of an encoder-decoder the source.
        decoder_ids: What the decoder of an encoder-decoder reads, from its start token on.
    """
    read: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=model.device)}
    if family.encoder_path is not None:
        read["decoder_input_ids"] = torch.tensor([list(decoder_ids)], device=model.device)
    if family.generates:
        read["use_cache"] = False
    if not any(getattr(module, "_can_record_outputs", None) for module in model.modules()):
        read["output_attentions"] = True  # families of transformers' older form give maps to who asks for them
    watch = ActivationWatch(model, family)
    with watch.listening():
        model.base_model(**read)  # without the head: nobody asks for its logits
    return watch


def not_finite(layers: Sequence[LayerActivations]) -> str | None:
    """The first layer whose outputs are not all numbers, as a sentence; None where all are."""
    for layer in layers:
        if not all(map(math.isfinite, (layer.norm, layer.first_norm))):
            return f"{layer.stack} layer {layer.index} is the first whose output is not finite: NaN or infinity"
    return None

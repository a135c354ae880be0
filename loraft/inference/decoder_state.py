"""How a model runs while it generates: what it has read of some rows, its cache, masks, attention and dtype."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from loraft.inference.fixed_decoding import FixedDecoding, Recorder, recorder_for
from loraft.io.resources import memory_errors
from loraft.kernels.decoding import new_cache, read_on
from loraft.kernels.decoding_products import patch_decode_linears
from loraft.kernels.packed_attention import ROWS
from loraft.kernels.transfer import to_device
from loraft.models.device import main_memory
from loraft.models.modules import start_token, wrapped_model
from loraft.models.probe import spec_of


@dataclass(frozen=True, eq=False)
class EncodedSource:
    """What an encoder has read: states `[rows, source, hidden]`, and a mask where a row is padded on its right."""

    states: Tensor
    mask: Tensor | None
    seconds: float


@dataclass
class _EncoderStates(BaseModelOutput):
    """What a decoder over an encoder of experts asks for besides; it counts in training alone."""

    router_logits: Any = None


class DecoderState:
    """What a model has read of one or several rows; it must be in `ordinary_attention` while it reads.

    With a cache each token is read once, and its keys and values are kept. Without one every `read` reads all
    rows from their start: slower with each token, and the same logits but for rounding. An encoder reads its rows
    once in either case. One that `rewinds` can go back to any point of what it has read: it keeps what has left a
    sliding window too, which masks hide. One with `room` for so many tokens a row decodes on CUDA as one graph, where
    the model can be recorded; it does not go back, and its rows are not repeated.
    """

    def __init__(
        self, model: nn.Module, *, use_cache: bool = True, rewinds: bool = False, room: int | None = None
    ) -> None:
        self._model = wrapped_model(model)
        self.family = spec_of(self._model.config)
        self.keeps = use_cache and self.family.caching != "none"
        ours = self.keeps and self.family.caching == "keys"
        self._room, self._record = room, recorder_for(self._model) if room is not None and ours else None
        self._fixed: FixedDecoding | None = None
        whole = (rewinds and self.family.rewinds) or self._record is not None
        self._cache: Cache | None = new_cache(self._model, rewinds=whole) if ours else None
        self.source: EncodedSource | None = None
        self._ids: Tensor | None = None
        self._mask: Tensor | None = None
        self._fed_from = 0
        parameters = inspect.signature(self._model.forward).parameters
        # A family without position ids (ALiBi) takes its positions from the mask.
        self._takes_positions = "position_ids" in parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @property
    def length(self) -> int:
        """How many tokens were read of each row, padding counted, the encoder's not."""
        return 0 if self._ids is None else self._ids.shape[1]

    @property
    def first_row(self) -> list[int]:
        """The tokens of the first row that were read."""
        return [] if self._ids is None else self._ids[0].tolist()

    @property
    def fed(self) -> Tensor:
        """What the model was fed at the last `read`, `[rows, time]`: with a cache what was new, without one all."""
        assert self._ids is not None
        return self._ids[:, self._fed_from :]

    @property
    def cache_bytes(self) -> int:
        """What the keys and values take that are kept; 0 without a cache."""
        cache: Any = self._cache
        both = isinstance(cache, EncoderDecoderCache)
        parts = [cache.self_attention_cache, cache.cross_attention_cache] if both else [cache] if cache else []
        held = (tensor for part in parts for layer in part.layers for tensor in (layer.keys, layer.values))
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def begin(self, rows: Sequence[Sequence[int]], *, start: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Ids and mask for the first `read` of these prompts: what was not read of them already, padded on the left.

        An encoder reads the prompts here, and the decoder begins from `start`, or where that is None from the model's
        own start token.
        """
        if not self._model.config.is_encoder_decoder:
            ids, mask = padded(rows, self._model.device)
            return ids[:, self.length :], mask
        started = perf_counter()
        ids, mask = padded(rows, self._model.device, "right")
        encoder = cast("nn.Module", self._model.get_encoder())
        with torch.inference_mode(), _reading(self._model):
            states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        self.source = EncodedSource(states, mask, perf_counter() - started)
        start = start_token(self._model) if start is None else start
        return torch.full((len(rows), 1), start, device=self._model.device), None

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read on, `ids` of `[rows, time]`, and give the logits of the token after them, `[rows, vocab]`, float32.

        A mask, `[rows, time]`, goes with the first read alone: 0 where a row is padded on its left.
        """
        self._fed_from = self.length if self.keeps else 0
        self._ids = ids if self._ids is None else torch.cat([self._ids, ids], dim=1)
        if self._mask is not None:
            mask = torch.cat([self._mask, self._mask.new_ones(ids.shape)], dim=1)
        self._mask = mask
        with _reading(self._model):
            if self._record is not None and self._fed_from and ids.shape[1] == 1:
                return self._fixed_decoding(self._record).read(ids)
            inputs = self._inputs(self._ids, self._fed_from) | self._last_only
            if not self.keeps:
                logits = self._model(**inputs, use_cache=False).logits
            else:
                read = read_on(self._model, self._cache, **inputs)
                logits, self._cache = read.logits, read.cache
        return cast("Tensor", logits[:, -1].float())

    def _fixed_decoding(self, record: Recorder) -> FixedDecoding:
        """What goes on with the rows, made of what was read of them when it is first asked for."""
        if self._fixed is None:
            assert self._cache is not None
            assert self._ids is not None
            assert self._room is not None
            besides = self._last_only | (self._of_source() if self.source is not None else {})
            read = None if self._mask is None else self._mask[:, : self._fed_from]
            self._fixed = FixedDecoding(self._model, self._cache, read, self._room, besides, record)
        return self._fixed

    def seen(self, vocabulary: int) -> Tensor:
        """Which tokens were read, `[rows, vocabulary]`, padding and what an encoder read apart."""
        assert self._ids is not None
        return self._ids.new_zeros(self._ids.shape[0], vocabulary).scatter_add_(1, self._ids, self._shown) > 0

    @torch.inference_mode()
    def attention_to_source(self) -> Tensor:
        """How much each token that the decoder read attends to each of the source.

        Computed again in one pass over the same tokens, with plain attention: faster kinds keep no weights. It is
        `[layers, rows, heads, time, source]`, float32; over `source` it sums to 1.
        """
        assert self._ids is not None
        attention = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")
        try:
            with _reading(self._model):
                output = self._model(**self._inputs(self._ids, 0), use_cache=False, output_attentions=True)
        finally:
            self._model.set_attn_implementation(attention)
        return torch.stack(output.cross_attentions).float()

    def _inputs(self, ids: Tensor, start: int) -> dict[str, Any]:
        if self.source is not None:
            return self._of_source() | {"decoder_input_ids": ids[:, start:]}
        inputs: dict[str, Any] = {"input_ids": ids[:, start:], "attention_mask": self._mask}
        if self._mask is not None and self._takes_positions:
            inputs["position_ids"] = (self._mask.cumsum(1) - 1).clamp_(min=0)[:, start:]
        return inputs

    def _of_source(self) -> dict[str, Any]:
        assert self.source is not None
        states = _EncoderStates(last_hidden_state=cast("Any", self.source.states))
        return {"encoder_outputs": states, "attention_mask": self.source.mask}

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order; a row that is named twice goes on twice."""
        kept = to_device(rows, self._model.device)
        if self._fixed is not None:
            self._fixed.keep(kept)
        elif self._cache is not None:
            # Which takes states along too, and any number of rows.
            self._cache.reorder_cache(cast("torch.LongTensor", kept))
        if self.source is not None:
            mask = None if self.source.mask is None else self.source.mask[kept]
            self.source = replace(self.source, states=self.source.states[kept], mask=mask)
        self._ids = None if self._ids is None else self._ids[kept]
        self._mask = None if self._mask is None else self._mask[kept]

    @property
    def joins(self) -> bool:
        """Whether rows that were read apart can go on together: padding on the left has to be hidden from them."""
        own = self.keeps and self.family.caching == "keys" and self._fixed is None
        return own and self.family.rewinds and self.family.pads_left and not self._model.config.is_encoder_decoder

    @torch.inference_mode()
    def join(self, others: Sequence[DecoderState]) -> None:
        """Take the rows of others in below its own; all of them must be ones that `rewind` and that `joins`."""
        states = [self, *others]
        length = max(each.length for each in states)
        masks = [_padded_left(each._shown, length, -1) for each in states]
        self._ids = torch.cat([_padded_left(cast("Tensor", each._ids), length, -1) for each in states])
        for own, *layers in zip(*(cast("Any", each._cache).layers for each in states), strict=True):
            own.keys = torch.cat([_padded_left(layer.keys, length, -2) for layer in (own, *layers)])
            own.values = torch.cat([_padded_left(layer.values, length, -2) for layer in (own, *layers)])
        self._mask = torch.cat(masks)
        self.trim()

    @torch.inference_mode()
    def trim(self) -> None:
        """Forget the columns in which every row is padding."""
        if self._mask is None:
            return
        if first := int(self._mask.amax(0).argmax()):
            self._ids, self._mask = cast("Tensor", self._ids)[:, first:], self._mask[:, first:]
            for layer in cast("Any", self._cache).layers:
                layer.keys, layer.values = layer.keys[..., first:, :], layer.values[..., first:, :]
        if self._mask.all():
            self._mask = None

    @torch.inference_mode()
    def part(self, row: int, length: int | None = None) -> DecoderState:
        """A copy of one row without its padding, or of its first tokens; the context must be one that `joins`."""
        first = int((self._shown[row] == 0).sum())
        shown = slice(first, None if length is None else first + length)
        taken = DecoderState(self._model, rewinds=True)
        taken._ids = cast("Tensor", self._ids)[row : row + 1, shown].clone()
        for place, layer in enumerate(cast("Any", self._cache).layers):
            both = (held[row : row + 1, :, shown].clone() for held in (layer.keys, layer.values))
            cast("Any", taken._cache).update(*both, place)
        return taken

    @property
    def _shown(self) -> Tensor:
        """The mask of what was read, `[rows, time]`."""
        assert self._ids is not None
        return torch.ones_like(self._ids) if self._mask is None else self._mask

    @torch.inference_mode()
    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens of each row; the context must be one that `rewinds`."""
        if length == self.length:
            return
        if self._fixed is not None:
            raise ValueError("what is decoded as a graph is not cut back")
        if not self.family.rewinds and self.keeps:
            raise ValueError("a recurrent state cannot be cut back")
        if self._cache is not None:
            self._cache.crop(length - self.length)
        self._ids = self._ids[:, :length] if self._ids is not None else None
        self._mask = self._mask[:, :length] if self._mask is not None else None


@contextmanager
def _reading(model: PreTrainedModel) -> Iterator[None]:
    """The model's products in its dtype, and memory that runs out as an error with a remedy."""
    message = "the device ran out of memory while it answered"
    remedy = "Answer fewer prompts at a time (`batch_size`), or shorter ones (`max_new_tokens`)."
    with memory_errors(message, remedy=remedy), products_in_model_dtype(model):
        yield


def padded(
    rows: Sequence[Sequence[int]], device: torch.device, side: Literal["left", "right"] = "left"
) -> tuple[Tensor, Tensor | None]:
    """Rows of different lengths as one block that ends together, or begins together, as encoders are trained.

    The ids and the mask are `[rows, time]`; there is no mask where no row is padded: attention is faster without.
    """
    tokens = [torch.tensor(row) for row in rows]
    # Any id does as padding, since the mask hides it; 0 is one that every vocabulary has.
    ids = pad_sequence(tokens, batch_first=True, padding_side=side)
    ids = to_device(ids, device)
    if len(set(map(len, rows))) == 1:
        return ids, None
    mask = pad_sequence(list(map(torch.ones_like, tokens)), batch_first=True, padding_side=side)
    return ids, to_device(mask, device)


def _padded_left(held: Tensor, length: int, dim: int) -> Tensor:
    """The same with zeros before it along `dim`, up to `length`."""
    missing = list(held.shape)
    missing[dim] = length - held.shape[dim]
    return torch.cat([held.new_zeros(missing), held], dim) if missing[dim] else held


@contextmanager
def ordinary_attention(model: nn.Module) -> Iterator[None]:
    """The model as it generates, with products that are fast for single tokens; afterwards as it was.

    Packed rows' attention keeps no cache, so an ordinary one takes its place. Every module is in eval mode: no
    dropout, and no gradient checkpointing, which acts in training mode only and would forbid the cache.
    """
    base = wrapped_model(model)
    attention = base.config._attn_implementation
    training = [module for module in model.modules() if module.training]
    model.eval()
    if attention == ROWS:
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    same_input, room = spec_of(base.config).same_input, main_memory()[1] // 2
    try:
        with patch_decode_linears(base, base.dtype, same_input=same_input, room=room, keeps=not training):
            yield
    finally:
        if attention == ROWS:
            base.set_attn_implementation(attention)
        # One by one: `model.train()` would also wake modules that were in eval mode before.
        for module in training:
            module.training = True


def products_in_model_dtype(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Adapters are float32 on a base of 16 bits: products run in the base's dtype, as in training.

    A float32 model stays in whatever autocast the caller has chosen.
    """
    return nullcontext() if model.dtype == torch.float32 else torch.autocast(model.device.type, dtype=model.dtype)

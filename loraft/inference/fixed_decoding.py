"""Decoding on CUDA as one graph: a step whose tensors stay where they are is recorded once, then launched as a whole.

A step is about a thousand launches, which take longer than the kernels of a small batch. It can be recorded where
nothing in it depends on numbers of the host: keys and values lie in room for the whole answer, and the place of the
newest token, masks and positions are computed on the device. The first steps are launched one by one. The record is
made as of one token earlier and tried on the next: what it gives must be what that step gave, so that a number of the
host that went into it shows. Where it does not, decoding goes on launch by launch, and says so.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from loraft.errors import first_line
from loraft.kernels.decoding import name_of_cache
from loraft.kernels.layer_stream import is_fed
from loraft.kernels.transfer import refusing_waits
from loraft.models.registry import FAMILIES

Step = Callable[[], Tensor]
Recorder = Callable[[Step], Step]
"""Makes of a step one that is launched as a whole."""
WARM_UP = 2
"""Steps that are launched one by one before one is recorded: libraries take their memory in them."""
WORTH_IT = 8
"""For fewer tokens than this nothing is recorded."""
SAME = 2e-2
"""By which share of the largest logit the record may differ: kernels may add in another order."""


def why_not_fixed(model: PreTrainedModel) -> str | None:
    """Why a step of a model cannot be recorded; None where it can."""
    config: Any = model.config
    spec = FAMILIES.get(config.model_type)
    if spec is None or spec.caching != "keys" or not spec.rewinds:
        return f"nothing is known of how a {config.model_type!r} keeps what it has read"
    if not getattr(model, "_can_compile_fullgraph", False):
        return f"transformers says that a {config.model_type!r} decides on the host what is computed"
    if any(hasattr(module, "make_weights") for module in model.modules()):
        return f"a {config.model_type!r} looks on the host whether its table of positions has to grow"
    if not config.is_encoder_decoder and "position_ids" not in inspect.signature(model.forward).parameters:
        return f"a {config.model_type!r} tells positions from a mask that grows"
    weights = list(model.parameters())
    if len({weight.device for weight in weights}) > 1 or any(map(is_fed, weights)):
        return "some of its weights lie elsewhere than others, and are brought when they are needed"
    return None


def recorder_for(model: PreTrainedModel) -> Recorder | None:
    """What records a step of a model; None where nothing does, on a CPU or because of the model.

    Nor under a caller's autocast, which keeps casts beyond a step, of which a record would be left with memory that is
    given back.
    """
    on_cuda = model.device.type == "cuda"
    return recorded if on_cuda and not torch.is_autocast_enabled("cuda") and why_not_fixed(model) is None else None


class FixedKVLayer(StaticLayer):  # type: ignore[no-untyped-call]
    """The keys and values of one layer in room for all tokens that are to come; `place` is that of the newest one."""

    is_compileable = False

    def __init__(self, keys: Tensor, values: Tensor, room: int, place: Tensor) -> None:
        super().__init__(room)
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = (self._with_room(held, room) for held in (keys, values))
        self.place, self.is_initialized = place, True

    @staticmethod
    def _with_room(held: Tensor, room: int) -> Tensor:
        # Zeros: what masks hide is multiplied by 0, which leaves no other number 0 for certain.
        made = held.new_zeros(*held.shape[:-2], room, held.shape[-1])
        made[..., : held.shape[-2], :] = held
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take the keys and values of one new token, and give all the room: `[rows, heads, room, head_size]`."""
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self.place, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.place, value_states.to(self.values.dtype))
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """How many tokens were read before the newest one: a tensor `[1]` of the device."""
        return self.place


class FixedDecoding:
    """One token a step for the rows that a cache has read, which stay in it until all have ended.

    Attributes:
        cache: With room for the whole answers.
        place: That of the newest token, `[1]`.

    Args:
        model: The model.
        grown: What was read of the rows, used up.
        mask: `[rows, time]`, 0 where a row is padded; None where none is.
        room: How many tokens a row will have at most.
        inputs: What the model is given with each token besides: what an encoder has read.
        record: Makes of a step one that is launched as a whole; None records nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        grown: Cache,
        mask: Tensor | None,
        room: int,
        inputs: Mapping[str, Any],
        record: Recorder | None = None,
    ) -> None:
        said: Any = grown.self_attention_cache if isinstance(grown, EncoderDecoderCache) else grown
        first = said.layers[0].keys
        rows, length, device = first.shape[0], first.shape[-2], first.device
        self._model, self._inputs, self._record = model, dict(inputs), record
        self.place = torch.full((1,), length, device=device)
        self._fix(said, room)
        self.cache = grown
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._places = torch.arange(room, device=device)
        self._shown = torch.ones(rows, room, dtype=torch.bool, device=device)
        if mask is not None:
            self._shown[:, :length] = mask > 0
        self._padding = (~self._shown).sum(1, keepdim=True)
        self._rows: Tensor | None = None
        self._windows = _windows(model)
        self._steps = 0
        self._replay: Step | None = None

    def _fix(self, said: Any, room: int) -> None:
        for number, layer in enumerate(said.layers):
            said.layers[number] = FixedKVLayer(layer.keys, layer.values, room, self.place)
            layer.keys = layer.values = None  # before the next one is made
        said.layer_class_to_replicate = None

    def keep(self, rows: Tensor) -> None:
        """Give the logits of these rows alone from now on, and take their tokens; the others run along."""
        self._rows = rows if self._rows is None else self._rows[rows]

    def read(self, ids: Tensor) -> Tensor:
        """Read one token of each row, `[rows, 1]`, and give the logits of the next, `[rows, vocab]`, float32."""
        if self._rows is None:
            self._ids.copy_(ids)
        else:
            self._ids.index_copy_(0, self._rows, ids)
        logits = self._next()
        self._steps += 1
        return logits.clone() if self._rows is None else logits.index_select(0, self._rows)

    def _next(self) -> Tensor:
        if self._record is None:
            return self._step()
        if self._steps > WARM_UP and self._replay is not None:
            return self._replay()
        logits = self._step()
        if self._steps == WARM_UP - 1:
            self._make_record()
        elif self._steps == WARM_UP and self._replay is not None:
            self._try_record(logits)
        return logits

    def _make_record(self) -> None:
        """Record a step as of one token earlier, if it is one for which the host does not wait.

        A wait breaks a record, and a broken one leaves torch's allocator in disorder: the step is tried before.
        """
        assert self._record is not None
        now, earlier = self.place.clone(), self.place - 1
        try:
            self.place.copy_(earlier)
            with refusing_waits(self.place.device):
                self._step()
            self.place.copy_(earlier)
            self._replay = self._record(self._step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._give_up(f"a step could not be recorded ({first_line(error)})")
        self.place.copy_(now)

    def _try_record(self, expected: Tensor) -> None:
        """Do the step that was just done once more, as recorded: it must give the same."""
        assert self._replay is not None
        expected = expected.clone()
        self.place.sub_(1)
        difference = (self._replay() - expected).abs().max()
        if not bool(difference <= SAME * expected.abs().max()):
            self._replay = None
            self._give_up("a recorded step gave other logits")

    def _give_up(self, reason: str) -> None:
        self._record = None
        warnings.warn(f"answers go on launch by launch, not as one CUDA graph: {reason}", stacklevel=2)

    def _step(self) -> Tensor:
        visible = self._shown & (self._places <= self.place)
        masks = {kind: self._mask(visible, window) for kind, window in self._windows.items()}
        given: Any = masks if len(masks) > 1 else next(iter(masks.values()))
        inputs: dict[str, Any] = {"input_ids": self._ids, "attention_mask": given}
        inputs["position_ids"] = self.place - self._padding
        if self._model.config.is_encoder_decoder:
            inputs = {"decoder_input_ids": self._ids, "decoder_attention_mask": given}
        inputs |= {name_of_cache(self._model): self.cache}
        output = self._model(**inputs, **self._inputs, use_cache=True)
        self.place.add_(1)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _mask(self, visible: Tensor, window: int | None) -> Tensor:
        """`[rows, 1, 1, room]`: True where a key is seen, or what is added to its score."""
        seen = visible if window is None else visible & (self._places > self.place - window)
        seen = seen[:, None, None]
        if self._model.config._attn_implementation != "eager":
            return seen
        hidden = torch.finfo(self._model.dtype).min
        return torch.zeros_like(seen, dtype=self._model.dtype).masked_fill(~seen, hidden)


def _windows(model: PreTrainedModel) -> dict[str, int | None]:
    """The kinds of a model's layers, each with its window: None sees all; of one kind alone it is called `all`."""
    if model.config.is_encoder_decoder:
        return {"all": None}
    found = {getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.config).layers}
    if len(found) == 1:
        return {"all": found.pop()}
    (window,) = found - {None}
    return {"full_attention": None, "sliding_attention": window}


def recorded(step: Step) -> Step:
    """A step of CUDA, recorded: what it launched is launched by one call, into the tensor that is given back.

    What other threads ask of CUDA meanwhile, NCCL's that looks after several ranks among them, does not end the record.
    """
    graph = torch.cuda.CUDAGraph()
    # One that breaks would go on with the stream on which it is made: torch leaves it only where all went well.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay

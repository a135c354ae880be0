"""Watching, without a change of it, how an answer comes about, and what each layer would have said: the logit lens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from loraft.inference.completion import Finish, PartialCompletion
from loraft.inference.decoder_state import DecoderState, products_in_model_dtype
from loraft.inference.sampling import GREEDY, probabilities, sampling_steps
from loraft.models.modules import wrapped_model
from loraft.models.probe import spec_of
from loraft.tokenization.boundaries import Piece, Pieces

Cut = Literal["temperature", "top_k", "top_p", "min_p", "never", "first", "last"]


@dataclass(frozen=True)
class Candidate:
    """A token that could have come, with what the model gave it, what the rules left it, and which took it out."""

    id: int
    text: str
    probability: float
    probability_after: float
    cut_by: Cut | None


@dataclass(frozen=True)
class LayerPrediction:
    """What a layer would have said, had it been the last; in its order the token that was taken has a rank, from 1."""

    layer: int
    id: int
    text: str
    probability: float
    rank_of_taken: int


@dataclass(frozen=True)
class Attended:
    """A token of the source that a step attended to, with its share: a mean over the heads of the last layers."""

    position: int
    text: str
    weight: float


@dataclass(frozen=True)
class Step:
    """How one token came about.

    Attributes:
        fed: What the model was fed: with a cache the prompt, then the newest token alone; without one all each time.
        how: greedy (the likeliest), sampled, or forced (an answer must begin or end with it).
        candidates: The likeliest by the model, and what was taken where it is not among them.
        entropy_bits: How undecided the model was, before the rules: 0 is certain, n is as open as 2ⁿ equal choices.
        cache_tokens: How many tokens of each layer the cache holds then; 0 without a cache.
        attended: What it attended to most in the source; empty without an encoder.
    """

    index: int
    fed: tuple[Piece, ...]
    taken: Piece
    how: Literal["greedy", "sampled", "forced"]
    probability: float
    probability_after: float
    candidates: tuple[Candidate, ...]
    entropy_bits: float
    cache_tokens: int
    cache_bytes: int
    milliseconds: float
    layers: tuple[LayerPrediction, ...] = ()
    attended: tuple[Attended, ...] = ()


@dataclass(frozen=True)
class EncoderPass:
    """The one pass of the encoder: how many tokens it read, each of which became one vector, and how long it took."""

    tokens: int
    milliseconds: float


@dataclass(frozen=True)
class Trace:
    """How an answer came about: by `rules`, where they differ from plain greedy choice; a stop id has a step too."""

    prompt: tuple[Piece, ...]
    encoder: EncoderPass | None
    use_cache: bool
    rules: Mapping[str, object]
    steps: tuple[Step, ...]
    ending: Finish
    ended_with: str | None

    def as_dict(self) -> dict[str, object]:
        """The trace as JSON shows it; of what was fed, the ids alone."""
        steps = [{**asdict(step), "fed": [piece.id for piece in step.fed]} for step in self.steps]
        return {**asdict(self), "steps": steps}


CANDIDATES = 5
LAYERS_ATTENDING = 2
"""Whose attention to the source is told: the last ones'."""
MOST_ATTENDED = 3


class Tracer:
    """Is told of each step of one answer, and makes its trace."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, layers: bool = False) -> None:
        self._pieces = Pieces(tokenizer)
        self._lens = LogitLens(wrapped_model(model)) if layers else None
        self._steps: list[Step] = []
        self._trace: Trace | None = None

    def listening(self) -> AbstractContextManager[object]:
        """For as long as the model runs: the layers are listened to where their words are asked for."""
        return nullcontext() if self._lens is None else self._lens.listening()

    @property
    def trace(self) -> Trace:
        """The trace, once the answer has ended."""
        if self._trace is None:
            raise ValueError("the answer has not ended")
        return self._trace

    def step(
        self, context: DecoderState, logits: Tensor, allowed: Tensor, answer: PartialCompletion, taken: int, cut: bool
    ) -> None:
        """One token was taken, which the limit may have forced (`cut`).

        Both `[1, vocab]`, `logits` are what the model said, and `allowed` what the rules of greedy answers leave.
        """
        index, (own,), rules, seconds = len(self._steps), logits, answer.rules, answer.seconds[-1]
        before, logs = own.softmax(-1), own.log_softmax(-1)
        (after,) = allowed.softmax(-1) if rules.greedy else probabilities(allowed, rules)
        if index == 0 and context.source is not None:
            seconds -= context.source.seconds
        forced: Cut | None = "last" if cut else "first" if index == 0 and rules.first is not None else None
        cuts: dict[Cut, Tensor] = {forced or "never": allowed[0].isneginf()}
        if not rules.greedy:
            cuts |= {rule: left[0].isneginf() for rule, left in sampling_steps(allowed, rules)}
        self._steps.append(
            Step(
                index=index,
                fed=self._pieces.all(context.fed[0].tolist()),
                taken=self._pieces.of(taken),
                how="forced" if forced else "greedy" if rules.greedy else "sampled",
                probability=before[taken].item(),
                probability_after=after[taken].item(),
                candidates=self._candidates(before, after, cuts, taken),
                entropy_bits=-torch.where(logs.isneginf(), 0.0, logs.exp() * logs).sum().item() / math.log(2),
                cache_tokens=context.length if context.keeps else 0,
                cache_bytes=context.cache_bytes,
                milliseconds=seconds * 1000,
                layers=self._layers(own, taken),
            )
        )

    def end(self, context: DecoderState, answer: PartialCompletion) -> None:
        """The answer has ended."""
        source, prompt_ids, ending = context.source, answer.prompt_ids, answer.ending
        assert ending is not None
        attended, plain = self._attended(context, prompt_ids), asdict(GREEDY)
        # Those that differ from plain greedy choice; the start token is told by what is fed first.
        rules = {key: value for key, value in asdict(answer.rules).items() if value != plain[key] and key != "start"}
        self._trace = Trace(
            prompt=self._pieces.all(prompt_ids),
            encoder=EncoderPass(len(prompt_ids), source.seconds * 1000) if source is not None else None,
            use_cache=context.keeps,
            rules=rules,
            steps=tuple(replace(step, attended=looks) for step, looks in zip(self._steps, attended, strict=True)),
            ending=ending,
            ended_with=None if ending.token_id is None else self._pieces.of(ending.token_id).text,
        )

    def _candidates(
        self, before: Tensor, after: Tensor, cuts: Mapping[Cut, Tensor], taken: int
    ) -> tuple[Candidate, ...]:
        ids = before.topk(min(CANDIDATES, len(before))).indices.tolist()
        return tuple(
            Candidate(
                id=token_id,
                text=self._pieces.of(token_id).text,
                probability=before[token_id].item(),
                probability_after=after[token_id].item(),
                cut_by=next((rule for rule, cut in cuts.items() if cut[token_id]), None),
            )
            for token_id in ([*ids] if taken in ids else [*ids, taken])
        )

    def _layers(self, logits: Tensor, taken: int) -> tuple[LayerPrediction, ...]:
        if self._lens is None:
            return ()
        said = self._lens.logits(logits)
        shares, ids = said.softmax(-1).max(-1)
        ranks = (said > said[:, taken, None]).sum(-1) + 1
        rows = zip(ids.tolist(), shares.tolist(), ranks.tolist(), strict=True)
        return tuple(
            LayerPrediction(layer, token_id, self._pieces.of(token_id).text, share, rank)
            for layer, (token_id, share, rank) in enumerate(rows)
        )

    def _attended(self, context: DecoderState, prompt_ids: Sequence[int]) -> list[tuple[Attended, ...]]:
        """What each step attended to most."""
        if context.source is None:
            return [()] * len(self._steps)
        weights = context.attention_to_source()[-LAYERS_ATTENDING:, 0].mean((0, 1))
        shares, places = weights.topk(min(MOST_ATTENDED, weights.shape[-1]))
        return [
            tuple(
                Attended(place, self._pieces.of(prompt_ids[place]).text, share)
                for place, share in zip(step_places, step_shares, strict=True)
            )
            for step_places, step_shares in zip(places.tolist(), shares.tolist(), strict=True)
        ]


class LogitLens:
    """Catches, while it listens, what each layer of a model gives for the last token of the first row.

    What a layer would have said comes from a pass of the model in which the last layer's output is replaced, so that
    all that follows it is done by the model itself.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        path = spec_of(model.config).layers_path
        self._layers: list[nn.Module] = list(cast("nn.ModuleList", model.get_submodule(path)))
        self._states: list[Tensor] = []
        self._in_place: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the model runs."""
        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.enter_context(layer.register_forward_hook(self._caught))
            hooks.enter_context(self._layers[-1].register_forward_hook(self._replaced))
            yield

    @torch.inference_mode()
    def logits(self, own: Tensor) -> Tensor:
        """What each layer says to the token read last, `[layers, vocab]`, float32; the last's is the model's `own`."""
        said = self.through_the_end(torch.stack(self._states))
        return torch.cat([said[:-1], own[None]])

    @torch.inference_mode()
    def through_the_end(self, states: Tensor) -> Tensor:
        """What the model makes of these outputs of its last layer: `[states, hidden]` -> `[states, vocab]`."""
        blank = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
        inputs: dict[str, Any] = {"input_ids": blank}
        if self._model.config.is_encoder_decoder:
            nothing_read = BaseModelOutput(last_hidden_state=cast("Any", torch.zeros_like(states)[:, None]))
            inputs = {"encoder_outputs": nothing_read, "decoder_input_ids": blank}
        self._in_place = states[:, None]
        try:
            with products_in_model_dtype(self._model):
                logits: Tensor = self._model(**inputs, use_cache=False).logits
        finally:
            self._in_place = None
        return logits[:, -1].float()

    def _caught(self, layer: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if self._in_place is not None:
            return
        if layer is self._layers[0]:
            self._states = []
        hidden = output if isinstance(output, Tensor) else output[0]
        self._states.append(hidden[0, -1])

    def _replaced(self, _: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
        if self._in_place is None:
            return None
        return self._in_place if isinstance(output, Tensor) else (self._in_place, *output[1:])

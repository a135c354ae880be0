"""How an answer came about, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from loraft.inference.completion import Finish
from loraft.tokenization.token_strings import Piece

Cut = Literal["temperature", "top_k", "top_p", "min_p", "never", "first", "last"]
How = Literal["greedy", "sampled", "forced"]


@dataclass(frozen=True)
class Candidate:
    """One of the tokens that could have come.

    Attributes:
        id: Its id.
        text: Its piece.
        probability: What the model gave it.
        probability_after: What the rules left it.
        cut_by: The rule that took it out; None where it could have been taken.
    """

    id: int
    text: str
    probability: float
    probability_after: float
    cut_by: Cut | None


@dataclass(frozen=True)
class LayerPrediction:
    """What a layer would have said, had it been the last.

    Attributes:
        layer: Its number, from 0.
        id: The token that it finds likeliest.
        text: Its piece.
        probability: What it gives that token.
        rank_of_taken: The place of the token that was taken in its order, from 1.
    """

    layer: int
    id: int
    text: str
    probability: float
    rank_of_taken: int


@dataclass(frozen=True)
class Attended:
    """A token of the source that a step attended to.

    Attributes:
        position: Its place in the source, from 0.
        text: Its piece.
        weight: Its share of the attention, a mean over the heads of the last layers.
    """

    position: int
    text: str
    weight: float


@dataclass(frozen=True)
class Step:
    """How one token came about.

    Attributes:
        index: Its place in the answer, from 0.
        fed: The tokens that the model was fed.
        taken: The token that was taken; the last one may be a stop id.
        how: greedy (the likeliest), sampled, or forced (an answer must begin or end with it).
        probability: What the model gave it.
        probability_after: What the rules left it.
        candidates: The likeliest by the model, and what was taken where it is not among them.
        entropy_bits: How undecided the model was, before the rules: 0 is certain, n is as open as 2ⁿ equal choices.
        cache_tokens: How many tokens of each layer the cache holds then; 0 without a cache.
        cache_bytes: What the cache takes.
        milliseconds: From what was fed to what was taken.
        layers: What each layer would have said; empty where nobody asked.
        attended: What it attended to most in the source; empty without an encoder.
    """

    index: int
    fed: tuple[Piece, ...]
    taken: Piece
    how: How
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
    """The one pass of the encoder.

    Attributes:
        tokens: How many tokens it read, each of which became one vector.
        milliseconds: How long it took.
    """

    tokens: int
    milliseconds: float


@dataclass(frozen=True)
class Trace:
    """How an answer came about.

    Attributes:
        prompt: What was asked, token by token.
        encoder: The encoder's pass over the prompt; None without an encoder.
        use_cache: Whether keys and values were kept.
        rules: What the rules were, where they differ from plain greedy choice.
        steps: One a token, the stop id included.
        ending: Why it ended.
        ended_with: The stop id's piece; None where it was no stop id.
    """

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

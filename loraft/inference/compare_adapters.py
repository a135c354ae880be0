"""The same prompts answered in several ways: by the base and each adapter on it, or with a cache and without.

Every speaker is asked in its own way: with the template, the system prompt and the defaults that it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest

from loraft.errors import AdapterError
from loraft.events import Note, Observer, Progress
from loraft.inference.completion import Completion
from loraft.inference.engine import complete_batch
from loraft.inference.requests import GenerationRequest
from loraft.inference.session import BASE, Session
from loraft.tokenization.boundaries import Piece


@dataclass(frozen=True)
class AdapterComparison:
    """A prompt and what each voice answers to it.

    Attributes:
        prompt: The prompt as it was given.
        completions: The answer of each voice by its name: the base first, then the adapters.
    """

    prompt: str
    completions: dict[str, Completion]


def compare(
    session: Session, prompts: Sequence[str], *, options: GenerationRequest, batch_size: int, observer: Observer
) -> list[AdapterComparison]:
    """Let every voice answer every prompt.

    Args:
        session: A base with at least one adapter.
        prompts: What is asked.
        options: How it is answered.
        batch_size: How many prompts at a time.
        observer: Is told how far it is.

    Raises:
        AdapterError: There is no adapter to compare the base with.
        DataError: A prompt is empty or too long.
    """
    if not session.adapters:
        message = "there is no adapter to compare the base with"
        raise AdapterError(message, parameter="compare", remedy="Name an adapter or a run, or give `adapters`.")
    voices = (BASE, *session.adapters)
    total = len(voices) * len(prompts)
    answers: dict[str, list[Completion]] = {}
    for name in voices:
        voice = session.voice(name)
        for note in voice.notes if name != session.voice().name else ():  # those of the first were told already
            observer(Note(f"{name}: {note}"))
        asked = [voice.conversation(prompt, options.system) for prompt in prompts]
        ids = [voice.prompt_ids(messages) for messages in asked]
        for note in voice.about_prompts(asked):
            observer(Note(f"{name}: {note}"))
        with session.speaking(voice) as model:
            answers[name] = complete_batch(
                model, voice.tokenizer, ids, **voice.settings(options), batch_size=batch_size
            )
        observer(Progress("answers", len(answers) * len(prompts), total))
    return [
        AdapterComparison(prompt, {name: answers[name][index] for name in voices})
        for index, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True)
class Speed:
    """How fast an answer came.

    Attributes:
        prefill_ms: Milliseconds until the first token was chosen.
        decode_tokens_per_second: The rate after it; None where no step followed.
    """

    prefill_ms: float
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class LogprobDifference:
    """Where two answers part.

    Attributes:
        index: The place in the answer, from 0.
        with_cache: The token there; None where the answer has ended.
        without_cache: The token there; None where the answer has ended.
    """

    index: int
    with_cache: Piece | None
    without_cache: Piece | None


@dataclass(frozen=True)
class CacheComparison:
    """One answer, made in both ways.

    Attributes:
        same_tokens: Whether both ways gave the same tokens.
        first_difference: Where they part; None where they do not.
        with_cache: How fast it was with a cache.
        without_cache: How fast it was without.
    """

    same_tokens: bool
    first_difference: LogprobDifference | None
    with_cache: Speed
    without_cache: Speed

    def as_dict(self) -> dict[str, object]:
        """The comparison as JSON shows it."""
        return asdict(self)


def compare_cache(cached: Completion, uncached: Completion, piece: Callable[[int], Piece]) -> CacheComparison:
    """Compare an answer that was made with a cache with one that was made without.

    Args:
        cached: The first.
        uncached: The second.
        piece: Spells a token.
    """
    pairs = enumerate(zip_longest(cached.token_ids, uncached.token_ids))
    apart = next(((index, *pair) for index, pair in pairs if pair[0] != pair[1]), None)
    difference = None
    if apart is not None:
        index, one, other = apart
        spelled = [piece(token_id) if token_id is not None else None for token_id in (one, other)]
        difference = LogprobDifference(index, *spelled)
    return CacheComparison(difference is None, difference, _speed(cached), _speed(uncached))


def _speed(completion: Completion) -> Speed:
    return Speed(completion.prefill_ms, completion.decode_tokens_per_second)

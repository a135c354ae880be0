"""Generation: the prompt is read once, then one token a step on a KV cache.

What the numbers mean, here and in JSON:

- An answer ends with `finish_reason` "stop" at a stop id, which is in neither `token_ids` nor the text, or at a stop
  text, whose tokens are in `token_ids`, but which is not in the text; or with "length" after `max_new_tokens`,
  where a position table ends, or one token before that where a model's defaults force a stop id to be the last.
- `logprobs` are natural logarithms of what the model itself gave each token: before every rule.
- Row `n` of a batch draws from `seed + n`, whatever rows are beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loraft.errors import ConfigError, DataError, Problem
from loraft.inference.beam_search import search
from loraft.inference.completion import Completion, Finish, PartialCompletion
from loraft.inference.decoder_state import DecoderState, learned_positions, ordinary_attention, prompt_limit
from loraft.inference.detokenize import Detokenizer, StopStringMatcher
from loraft.inference.sampling import apply_logit_rules, normalizers, probabilities, sample
from loraft.inference.sampling_params import SamplingParams
from loraft.inference.tracer import Tracer
from loraft.models.modules import wrapped_model


@dataclass(frozen=True)
class Token:
    """One token of an answer, as it comes.

    Attributes:
        id: Its id.
        text: What became readable with it; empty while a character is unfinished.
        logprob: Natural log-probability under the model, before the sampling rules.
        index: Its place in the answer, from 0.
    """

    id: int
    text: str
    logprob: float
    index: int


class TokenStream(Iterator[Token]):
    """The tokens of one answer, as they come."""

    def __init__(self, tokens: Generator[Token, None, Completion]) -> None:
        self._tokens = tokens
        self._completion: Completion | None = None

    def __next__(self) -> Token:
        try:
            return next(self._tokens)
        except StopIteration as end:
            self._completion = self._completion or end.value
            raise StopIteration from None

    def stop(self) -> None:
        """End the answer here, and give the model back."""
        self._tokens.close()


class Stream(TokenStream):
    """The tokens of one answer, as they come; then `completion`.

    Until it is exhausted or stopped, the model stays in `ordinary_attention`.
    """

    def __init__(self, answer: PartialCompletion, tokens: Generator[Token, None, Completion]) -> None:
        super().__init__(tokens)
        self._answer = answer

    @property
    def ending(self) -> Finish | None:
        """Why the answer ended; None until it has."""
        return self._answer.ending

    @property
    def completion(self) -> Completion:
        """The whole answer; what is left of it is generated first."""
        for _ in self:
            pass
        if self._completion is None:
            raise ValueError("the stream was stopped before its end")
        return self._completion


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    *,
    rules: SamplingParams,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int | None = None,
    context: DecoderState | None = None,
    stop_texts: Sequence[str] = (),
    tracer: Tracer | None = None,
) -> Stream:
    """Answer one prompt, token by token.

    Args:
        model: A model of transformers, with or without an adapter of peft.
        tokenizer: Spells the tokens.
        prompt_ids: The prompt, rendered and tokenized.
        rules: How each token is drawn.
        max_new_tokens: The most tokens of the answer, at least 1.
        stop_ids: The ids that end the answer.
        seed: The seed of the draws; None is another one each time. The global random state is left alone.
        context: What reads, where it is not a new one with a cache. It may have read a beginning of the prompt already,
            at most all but its last token; it goes on to hold the answer's tokens, save for the last one.
        stop_texts: The texts that end the answer.
        tracer: Is told how each token came about, which changes none.

    Raises:
        ConfigError: If `max_new_tokens` is below 1, or beams are to be traced.
        DataError: If the prompt is empty, or longer than the positions that the model was trained with.
        NonFiniteError: While iterating, if the model's logits are not numbers.
    """
    answers = _open_answers(model, tokenizer, [prompt_ids], max_new_tokens, seed, stop_texts)
    stops = frozenset(stop_ids) | _spelled_stop_ids(tokenizer, stop_texts)
    context = context or DecoderState(model)
    if rules.num_beams > 1:
        if tracer is not None:
            raise ConfigError("beams cannot be traced", key="num_beams", remedy="Trace an answer without beams.")
        steps = search(context, answers[0], rules, stops)
    else:
        steps = _decode(context, answers, rules, stops, tracer)
    return Stream(answers[0], _tokens(model, tokenizer, answers[0], steps, tracer))


def complete_batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    rules: SamplingParams,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int | None = None,
    batch_size: int = 16,
    stop_texts: Sequence[str] = (),
    on_batch: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answer several prompts, up to `batch_size` at a time, and those of like length together.

    The arguments are those of `stream`; `on_batch` is told after each batch how many prompts are answered. Rows that
    have ended leave their batch, so the rest runs faster.

    Returns:
        One completion a prompt, in the order of the prompts.

    Raises:
        ConfigError: If `max_new_tokens` is below 1.
        DataError: If any prompt is empty, or longer than the positions of training; every such one is named.
        NonFiniteError: If the model's logits are not numbers.
    """
    answers = _open_answers(model, tokenizer, prompts, max_new_tokens, seed, stop_texts)
    stops = frozenset(stop_ids) | _spelled_stop_ids(tokenizer, stop_texts)
    # The longest first: if memory is too small, that shows at once.
    by_length = sorted(answers, key=lambda answer: len(answer.prompt_ids), reverse=True)
    with ordinary_attention(model):
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            if rules.num_beams > 1:  # the beams of one prompt are a batch by themselves
                deque(chain.from_iterable(search(DecoderState(model), each, rules, stops) for each in batch), maxlen=0)
            else:
                deque(_decode(DecoderState(model), batch, rules, stops), maxlen=0)
            if on_batch is not None:
                on_batch(start + len(batch))
    return [answer.completion(tokenizer) for answer in answers]


def _open_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int | None,
    stop_texts: Sequence[str],
) -> list[PartialCompletion]:
    if max_new_tokens < 1:
        raise ConfigError(f"must be at least 1, not {max_new_tokens}", key="max_new_tokens")
    most, positions = prompt_limit(model), learned_positions(model)
    problems = [_prompt_problem(len(ids), most, number) for number, ids in enumerate(prompts, start=1)]
    if found := [problem for problem in problems if problem]:
        raise DataError.several(found)
    answers = []
    for index, ids in enumerate(prompts):
        generator = torch.Generator()
        _ = generator.seed() if seed is None else generator.manual_seed(seed + index)
        # The last token is never read, so it needs no position. What an encoder reads takes none of the decoder's,
        # whose first one goes to the start token.
        taken = 1 if wrapped_model(model).config.is_encoder_decoder else len(ids)
        limit = max_new_tokens if positions is None else min(max_new_tokens, positions - taken + 1)
        answers.append(PartialCompletion(ids, limit, Detokenizer(tokenizer), generator, StopStringMatcher(stop_texts)))
    return answers


def _spelled_stop_ids(tokenizer: PreTrainedTokenizerBase, stop_texts: Sequence[str]) -> frozenset[int]:
    """The special tokens among the stop texts: they are never in the text of an answer, so their ids end it."""
    special = {str(tokenizer.convert_ids_to_tokens(token_id)): token_id for token_id in tokenizer.all_special_ids}
    return frozenset(special[text] for text in stop_texts if text in special)


def _prompt_problem(length: int, most: int | None, number: int) -> Problem | None:
    where = f"prompt {number}"
    if length == 0:
        return Problem("has no tokens", where, remedy="Give it at least one word.")
    if most is not None and length > most:
        message = f"has {length:,} tokens, and this model has learned {most:,} positions"
        return Problem(
            message, where, remedy=f"Shorten it to {most:,} tokens, or choose a model with a longer context."
        )
    return None


def _decode(
    context: DecoderState,
    answers: Sequence[PartialCompletion],
    rules: SamplingParams,
    stop_ids: frozenset[int],
    tracer: Tracer | None = None,
) -> Iterator[None]:
    """Let the answers grow together, one token of each at a time, until all have ended; one `yield` a step."""
    going = list(answers)
    started = perf_counter()
    ids, mask = context.begin([answer.prompt_ids for answer in going], start=rules.start)
    while going:
        logits = context.read(ids, mask)
        seen = context.seen(logits.shape[-1]) if rules.repetition_penalty != 1 else None
        cut = [bool(rules.last) and answer.is_at_end for answer in going]
        allowed = apply_logit_rules(logits, rules, seen=seen, at_start=not going[0].seconds, at_end=cut)
        chosen, logprobs = _draw(logits, allowed, rules, [answer.generator for answer in going])
        taken = list(zip(going, chosen.tolist(), logprobs.tolist(), strict=True))
        seconds = perf_counter() - started
        for (answer, token_id, logprob), is_cut in zip(taken, cut, strict=True):
            answer.take(token_id, logprob, seconds, stop_ids, is_cut=is_cut)
        if tracer is not None:
            tracer.step(context, logits[0], allowed[0], rules, taken[0][1], seconds, is_cut=cut[0])
        yield
        started = perf_counter()
        kept = [row for row, answer in enumerate(going) if answer.ending is None]
        if 0 < len(kept) < len(going):
            context.keep(kept)
        going = [going[row] for row in kept]
        ids, mask = chosen[kept, None], None
    if tracer is not None and (ending := answers[0].ending) is not None:
        tracer.end(context, answers[0].prompt_ids, rules, ending)


def _draw(
    logits: Tensor, allowed: Tensor, rules: SamplingParams, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """One token a row `[rows]`, and its log-probability under the model `[rows]`.

    `logits` and `allowed`, both `[rows, vocab]`, are what the model says and what the rules leave of it.
    """
    of_model = normalizers(logits)
    chosen = allowed.argmax(-1) if rules.greedy else sample(probabilities(allowed, rules), generators)
    return chosen, logits.gather(1, chosen[:, None])[:, 0] - of_model


def _tokens(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    answer: PartialCompletion,
    steps: Iterator[None],
    tracer: Tracer | None = None,
) -> Generator[Token, None, Completion]:
    """The tokens of a growing answer.

    A token whose text waits is held back until the next step: should that one be a stop id, what waits is this
    token's text. Nothing readable is ever held.
    """
    given = 0
    with ordinary_attention(model), tracer or nullcontext():
        for _ in steps:
            ready = len(answer.token_ids) - (1 if answer.waits else 0)
            while given < ready:
                yield Token(answer.token_ids[given], answer.pieces[given], answer.logprobs[given], given)
                given += 1
    return answer.completion(tokenizer)

"""Generation: the prompt is read once, then one token a step on a KV cache.

This module knows when a token is chosen, spelled and counted, and when an answer ends. It refuses to know chat
templates (it takes ids), where models come from, and how anything is shown.

What the numbers mean, here and in `--json`:

- An answer ends with `finish_reason` "stop" at a stop id, which is in neither `token_ids` nor the text; or with
  "length" after `max_new_tokens`, or where a learned position table ends.
- `logprobs` are natural logarithms of what the model itself gave each token: before temperature, top-k and top-p.
- Row `n` of a batch draws from `seed + n`, whatever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loraft.errors import ConfigError, DataError, NonFiniteError, Problem
from loraft.generation.answer import Completion, FinishReason, GrowingAnswer
from loraft.generation.context import Context, learned_positions, ordinary_attention, pad_left
from loraft.generation.detokenize import Detokenizer
from loraft.generation.sampling import SamplingRules, choose, probabilities

__all__ = ["Completion", "FinishReason", "Stream", "Token", "complete_batch", "stream"]


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


class Stream(Iterator[Token]):
    """The tokens of one answer, as they come; then `completion`.

    Until it is exhausted or closed, the model stays in `ordinary_attention`.
    """

    def __init__(self, tokens: Generator[Token, None, Completion]) -> None:
        self._tokens = tokens
        self._completion: Completion | None = None

    def __next__(self) -> Token:
        try:
            return next(self._tokens)
        except StopIteration as end:
            self._completion = self._completion or end.value
            raise StopIteration from None

    def close(self) -> None:
        """End the answer here and give the model back."""
        self._tokens.close()

    @property
    def completion(self) -> Completion:
        """The whole answer; what is left of it is generated first."""
        for _ in self:
            pass
        if self._completion is None:
            raise ValueError("the stream was closed before its end")
        return self._completion


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    *,
    rules: SamplingRules,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int | None = None,
    use_cache: bool = True,
    context: Context | None = None,
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
        use_cache: False reads everything again at each step, for comparison.
        context: What has read a beginning of the prompt already, at most all but its last token: only the rest is
            read. It goes on to hold the answer's tokens, save for the last one.

    Raises:
        ConfigError: If `max_new_tokens` is below 1.
        DataError: If the prompt is empty, or longer than the model's position table.
        NonFiniteError: While iterating, if the model's logits are not numbers.
    """
    answers = _open_answers(model, tokenizer, [prompt_ids], max_new_tokens, seed)
    context = context or Context(model, use_cache=use_cache)
    steps = _decode(context, answers, rules, frozenset(stop_ids))
    return Stream(_tokens(model, tokenizer, answers[0], steps))


def complete_batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    rules: SamplingRules,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int | None = None,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answer several prompts, up to `batch_size` at a time, and those of like length together.

    The arguments are those of `stream`; `on_batch` is told after each batch how many prompts are answered. Rows that
    have ended leave their batch, so the rest runs faster.

    Returns:
        One completion a prompt, in the order of the prompts.

    Raises:
        ConfigError: If `max_new_tokens` is below 1.
        DataError: If any prompt is empty, or longer than the model's position table; every such one is named.
        NonFiniteError: If the model's logits are not numbers.
    """
    answers = _open_answers(model, tokenizer, prompts, max_new_tokens, seed)
    # The longest first: if memory is too small, that shows at once.
    by_length = sorted(answers, key=lambda answer: len(answer.prompt_ids), reverse=True)
    with ordinary_attention(model):
        for start in range(0, len(by_length), batch_size):
            for _ in _decode(Context(model), by_length[start : start + batch_size], rules, frozenset(stop_ids)):
                pass
            if on_batch is not None:
                on_batch(min(start + batch_size, len(by_length)))
    return [answer.completion(tokenizer) for answer in answers]


def _open_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int | None,
) -> list[GrowingAnswer]:
    if max_new_tokens < 1:
        raise ConfigError(f"must be at least 1, not {max_new_tokens}", key="max_new_tokens")
    positions = learned_positions(model)
    problems = [_prompt_problem(len(ids), positions, number) for number, ids in enumerate(prompts, start=1)]
    if found := [problem for problem in problems if problem]:
        raise DataError.several(found)
    answers = []
    for index, ids in enumerate(prompts):
        generator = torch.Generator()
        _ = generator.seed() if seed is None else generator.manual_seed(seed + index)
        # The last token is never read, so it needs no position.
        limit = max_new_tokens if positions is None else min(max_new_tokens, positions - len(ids) + 1)
        answers.append(GrowingAnswer(ids, limit, Detokenizer(tokenizer), generator))
    return answers


def _prompt_problem(length: int, positions: int | None, number: int) -> Problem | None:
    where = f"prompt {number}"
    if length == 0:
        return Problem("has no tokens", where, remedy="Give it at least one word.")
    if positions is not None and length > positions:
        message = f"has {length:,} tokens, and this model has learned {positions:,} positions"
        return Problem(
            message, where, remedy=f"Shorten it to {positions:,} tokens, or choose a model with a longer context."
        )
    return None


def _decode(
    context: Context, answers: Sequence[GrowingAnswer], rules: SamplingRules, stop_ids: frozenset[int]
) -> Iterator[None]:
    """Let the answers grow together, one token of each at a time, until all have ended; one `yield` a step."""
    going = list(answers)
    ids, mask = pad_left([answer.prompt_ids for answer in going], context.device)
    ids = ids[:, context.length :]
    while going:
        started = perf_counter()
        logits = context.read(ids, mask)
        chosen, logprobs = _draw(logits, rules, [answer.generator for answer in going])
        taken = zip(going, chosen.tolist(), logprobs.tolist(), strict=True)
        seconds = perf_counter() - started
        for answer, token_id, logprob in taken:
            answer.take(token_id, logprob, seconds, stop_ids)
        yield
        kept = [row for row, answer in enumerate(going) if answer.finish_reason is None]
        if 0 < len(kept) < len(going):
            context.keep(kept)
        going = [going[row] for row in kept]
        ids, mask = chosen[kept, None], None


@torch.inference_mode()
def _draw(logits: Tensor, rules: SamplingRules, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """One token a row `[rows]`, and its log-probability under the model `[rows]`, from logits `[rows, vocab]`."""
    of_model = logits.log_softmax(-1)
    if of_model.isnan().any():
        raise NonFiniteError(
            "the model's logits are not finite, so no token can be chosen",
            remedy="Try model.dtype=float32 or bfloat16; if it stays, the weights or the adapter are damaged.",
        )
    chosen = choose(probabilities(logits, rules), None if rules.greedy else generators)
    return chosen, of_model.gather(1, chosen[:, None])[:, 0]


def _tokens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, answer: GrowingAnswer, steps: Iterator[None]
) -> Generator[Token, None, Completion]:
    """The tokens of a growing answer.

    A token whose text waits is held back until the next step: should that one be a stop id, what waits is this
    token's text. Nothing readable is ever held.
    """
    given = 0
    with ordinary_attention(model):
        for _ in steps:
            waits = answer.detokenizer.waits
            ready = len(answer.token_ids) - (1 if waits else 0)
            while given < ready:
                yield Token(answer.token_ids[given], answer.pieces[given], answer.logprobs[given], given)
                given += 1
    return answer.completion(tokenizer)

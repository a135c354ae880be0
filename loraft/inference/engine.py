"""Generation: the prompt is read once, then one token a step on a KV cache; or beams, of which the likeliest is given.

What the numbers mean, here and in JSON:

- An answer ends with `finish_reason` "stop" at a stop id, which is in neither `token_ids` nor the text, or at a stop
  text, whose tokens are in `token_ids`, but which is not in the text; or with "length" after `max_new_tokens`,
  where a position table ends, or one token before that where a model's defaults force a stop id to be the last.
- `logprobs` are natural logarithms of what the model itself gave each token: before every rule.
- Row `n` of a batch draws from `seed + n`, whatever rows are beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, groupby
from time import perf_counter
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loraft.errors import ConfigError, DataError, Problem
from loraft.inference.completion import Completion, Detokenizer, PartialCompletion, StopStringMatcher, Stream, Token
from loraft.inference.decoder_state import DecoderState, ordinary_attention
from loraft.inference.fixed_decoding import WORTH_IT
from loraft.inference.prompt_limits import learned_positions, prompt_limit
from loraft.inference.sampling import SamplingParams, apply_logit_rules, normalizers, probabilities, read_finite, sample
from loraft.inference.tracer import Tracer
from loraft.kernels.transfer import to_device
from loraft.models.modules import wrapped_model
from loraft.models.probe import spec_of


class Settings(TypedDict):
    """How answers are made; without a seed the draws are others each time. The global random state is left alone.

    On CUDA a step is launched as one graph where the model can be recorded, unless `cuda_graphs` is False.
    """

    rules: SamplingParams
    max_new_tokens: int
    stop_ids: Sequence[int]
    stop_texts: NotRequired[Sequence[str]]
    seed: NotRequired[int | None]
    cuda_graphs: NotRequired[bool]


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    *,
    context: DecoderState | None = None,
    tracer: Tracer | None = None,
    **settings: Unpack[Settings],
) -> Stream:
    """Answer one prompt, token by token; a tracer is told how each came about, which changes none.

    What reads is a new `context` with a cache, or one that may have read a beginning of the prompt already, at most all
    but its last token; it goes on to hold the answer's tokens, save for the last one. Refused are a prompt that is
    empty or longer than the positions of training, a limit below one token, beams that are to be traced, and while
    iterating logits that are not numbers.
    """
    (answer,) = open_answers(model, tokenizer, [prompt_ids], settings)
    context, beams = context or _context(model, [answer], settings), answer.rules.num_beams > 1
    if beams and tracer is not None:
        raise ConfigError("beams cannot be traced", key="num_beams", remedy="Trace an answer without beams.")
    steps = _search(context, answer) if beams else _decode(context, [answer], tracer)
    return Stream(answer, _tokens(model, answer, steps, tracer))


def complete_batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    **settings: Unpack[Settings],
) -> list[Completion]:
    """Answer several prompts, up to `batch_size` at a time, and those of like length together.

    There is one completion a prompt, in the order of the prompts; `on_batch` is told after each batch how many are
    answered. Rows that have ended leave their batch, so the rest runs faster. Refused is what `stream` refuses.
    """
    answers = open_answers(model, tokenizer, prompts, settings)
    # The longest first: if memory is too small, that shows at once.
    by_length = sorted(answers, key=lambda answer: len(answer.prompt_ids), reverse=True)
    with ordinary_attention(model):
        answered = 0
        for batch in _batches(model, by_length, batch_size):
            if settings["rules"].num_beams > 1:  # the beams of one prompt are a batch by themselves
                steps: Iterator[None] = chain.from_iterable(_search(DecoderState(model), each) for each in batch)
            else:
                steps = _decode(_context(model, batch, settings), batch, None)
            deque(steps, maxlen=0)
            answered += len(batch)
            if on_batch is not None:
                on_batch(answered)
    return [answer.completion() for answer in answers]


def _context(model: nn.Module, answers: Sequence[PartialCompletion], settings: Settings) -> DecoderState:
    """What reads for these answers: with room for all of them where a step is worth to be recorded."""
    worth_it = settings["rules"].num_beams == 1 and max(answer.limit for answer in answers) >= WORTH_IT
    if not worth_it or not settings.get("cuda_graphs", True):
        return DecoderState(model)
    start_alone = wrapped_model(model).config.is_encoder_decoder
    read = 1 if start_alone else max(len(answer.prompt_ids) for answer in answers)
    return DecoderState(model, room=read + max(answer.limit for answer in answers))


def _batches(
    model: nn.Module, answers: Sequence[PartialCompletion], size: int
) -> Iterator[Sequence[PartialCompletion]]:
    """Up to `size` answers at a time, in order; prompts of one length alone where padding on the left would be read."""
    config = wrapped_model(model).config
    together = config.is_encoder_decoder or spec_of(config).pads_left
    for _, same in groupby(answers, key=lambda answer: 0 if together else len(answer.prompt_ids)):
        group = list(same)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _special_ids(tokenizer: PreTrainedTokenizerBase, stop_texts: Collection[str]) -> Iterator[int]:
    """The ids of stop texts that are special tokens: no answer's text has them. Llama 3 declares two of its 256."""
    if stop_texts:  # a vocabulary may have thousands to list
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        added = tokenizer.added_tokens_decoder.items()
        special |= {token.content: token_id for token_id, token in added if token.special}
        yield from (special[text] for text in stop_texts if text in special)


def open_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], settings: Settings
) -> list[PartialCompletion]:
    """The answers to prompts of tokens before their first one.

    Raises:
        InvalidInputError: A prompt is empty or longer than the positions of training, or no token is allowed.
    """
    longest, seed, stop_texts = settings["max_new_tokens"], settings.get("seed"), settings.get("stop_texts", ())
    if longest < 1:
        raise ConfigError(f"must be at least 1, not {longest}", key="max_new_tokens")
    most, positions = prompt_limit(model), learned_positions(model)
    answers, problems = [], []
    several = any(ids is not prompts[0] for ids in prompts)  # one prompt may be given several answers
    for number, length in enumerate(map(len, prompts), start=1):
        called = f"prompt {number}" if several else "the prompt"
        if not length:
            problems.append(Problem("has no tokens", called, remedy="Give it at least one word."))
        elif most is not None and length > most:
            message = f"has {length:,} tokens, and this model has learned {most:,} positions"
            remedy = f"Shorten it to {most:,} tokens, or choose a model with a longer context."
            problems.append(Problem(message, called, remedy=remedy))
    if problems:
        raise DataError.several(problems)
    stop_ids = frozenset([*settings["stop_ids"], *_special_ids(tokenizer, stop_texts)])
    for index, ids in enumerate(prompts):
        generator = torch.Generator()
        _ = generator.seed() if seed is None else generator.manual_seed(seed + index)
        # The last token is never read, so it needs no position. What an encoder reads takes none of the decoder's,
        # whose first one goes to the start token.
        taken = 1 if wrapped_model(model).config.is_encoder_decoder else len(ids)
        limit = longest if positions is None else min(longest, positions - taken + 1)
        detokenizer, text_end = Detokenizer(tokenizer), StopStringMatcher(stop_texts)
        how = (limit, settings["rules"], stop_ids, detokenizer, generator, text_end)
        answers.append(PartialCompletion(ids, *how, "limit" if limit == longest else "positions"))
    return answers


def _decode(context: DecoderState, answers: Sequence[PartialCompletion], tracer: Tracer | None) -> Iterator[None]:
    """Let the answers grow together, one token of each at a time, until all have ended; one `yield` a step."""
    going, rules = list(answers), answers[0].rules
    started = perf_counter()
    ids, mask = context.begin([answer.prompt_ids for answer in going], start=rules.start)
    while going:
        logits = context.read(ids, mask)
        cut = going[0].is_cut
        chosen, allowed = take_tokens(context, logits, going, started)
        if tracer is not None:
            tracer.step(context, logits, allowed, answers[0], int(chosen[0]), cut=cut)
        yield
        started = perf_counter()
        kept = [row for row, answer in enumerate(going) if answer.ending is None]
        if 0 < len(kept) < len(going):
            context.keep(kept)
            chosen = chosen.index_select(0, to_device(kept, chosen.device))
        going = [going[row] for row in kept]
        ids, mask = chosen[:, None], None
    if tracer is not None:
        tracer.end(context, answers[0])


def take_tokens(
    context: DecoderState, logits: Tensor, answers: Sequence[PartialCompletion], started: float
) -> tuple[Tensor, Tensor]:
    """Let each answer take its next token, by its own rules; `logits`, `[rows, vocab]`, are what `context` gave them.

    Returns:
        The tokens, `[rows]`, and what the rules of greedy answers left of the logits.

    Raises:
        NonFiniteError: The logits of a row are not numbers.
    """
    seen = context.seen(logits.shape[-1]) if any(each.rules.repetition_penalty != 1 for each in answers) else None
    cut = [answer.is_cut for answer in answers]
    alike: dict[tuple[SamplingParams, bool], list[int]] = {}
    for row, answer in enumerate(answers):
        alike.setdefault((answer.rules, not answer.seconds), []).append(row)
    if len(alike) == 1:
        chosen, allowed = _choose(logits, answers, seen, cut)
    else:
        chosen, allowed = logits.new_zeros(len(answers), dtype=torch.long), torch.empty_like(logits)
        for rows in alike.values():
            place = to_device(rows, logits.device)
            seen_there = None if seen is None else seen[place]
            some = _choose(logits[place], [answers[row] for row in rows], seen_there, [cut[row] for row in rows])
            chosen[place], allowed[place] = some
    of_model = normalizers(logits)
    logprobs = logits.gather(1, chosen[:, None])[:, 0] - of_model
    token_ids, told = read_finite(of_model, chosen, logprobs)  # the one thing that is waited for
    seconds = perf_counter() - started
    for answer, token_id, logprob, is_cut in zip(answers, map(int, token_ids), told, cut, strict=True):
        answer.take(token_id, logprob, seconds, is_cut=is_cut)
    return chosen, allowed


def _choose(
    logits: Tensor, answers: Sequence[PartialCompletion], seen: Tensor | None, cut: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """The next tokens of answers that go by the same rules, and what these left of the logits."""
    rules = answers[0].rules
    allowed = apply_logit_rules(logits, rules, seen=seen, at_start=not answers[0].seconds, at_end=cut)
    if rules.greedy:
        return allowed.argmax(-1), allowed
    return sample(probabilities(allowed, rules), [answer.generator for answer in answers]), allowed


def _tokens(
    model: nn.Module, answer: PartialCompletion, steps: Iterator[None], tracer: Tracer | None
) -> Generator[Token, None, Completion]:
    """The tokens of a growing answer.

    A token whose text waits is held back until the next step: should that one be a stop id, what waits is this
    token's text. Nothing readable is ever held.
    """
    given = 0
    with ordinary_attention(model), nullcontext() if tracer is None else tracer.listening():
        for _ in steps:
            ready = len(answer.token_ids) - (1 if answer.waits else 0)
            while given < ready:
                yield Token(answer.token_ids[given], answer.pieces[given], answer.logprobs[given], given)
                given += 1
    return answer.completion()


@dataclass(frozen=True)
class _Beam:
    """One of the answers that are followed, and the row of the context that it goes on from."""

    row: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0  # the sum after the rules; of a finished one divided by length ** length_penalty


def _search(context: DecoderState, answer: PartialCompletion) -> Iterator[None]:
    """Find the likeliest answer, then let `answer` grow by its tokens at once; one `yield` a token.

    Source: Graves 2012, Sequence Transduction with Recurrent Neural Networks, section 2.5
        (https://arxiv.org/abs/1211.3711); the length in the score, Wu et al. 2016, GNMT, section 7
        (https://arxiv.org/abs/1609.08144), as transformers simplifies it.
    """
    rules, going, finished, seconds = answer.rules, [_Beam(0)], list[_Beam](), list[float]()
    started = perf_counter()
    ids, mask = context.begin([answer.prompt_ids], start=rules.start)
    # So many continuations that enough go on even where every beam could end with each of the stop ids.
    most = rules.num_beams * max(2, 1 + len(answer.stop_ids))
    while going:
        logits = context.read(ids, mask)
        candidates = _continuations(context, logits, going, answer, most)
        ended = [_ends(beam, answer) for beam in candidates]
        for beam, ends in zip(candidates[: rules.num_beams], ended, strict=False):
            if ends:
                finished.append(replace(beam, score=beam.score / len(beam.token_ids) ** rules.length_penalty))
        finished = sorted(finished, key=lambda beam: -beam.score)[: rules.num_beams]
        going = [beam for beam, ends in zip(candidates, ended, strict=True) if not ends][: rules.num_beams]
        if going and _is_over(going[0], finished, answer):
            going = []
        if going:
            context.keep([beam.row for beam in going])
            ids, mask = to_device([beam.token_ids[-1:] for beam in going], logits.device), None
        seconds.append(perf_counter() - started)
        started = perf_counter()
    best = finished[0]
    rest = sum(seconds[1:]) / max(1, len(best.token_ids) - 1)  # the time of the search is spread over the tokens
    for index, (token_id, logprob) in enumerate(zip(best.token_ids, best.logprobs, strict=True)):
        answer.take(token_id, logprob, rest if index else seconds[0], is_cut=answer.is_cut)
        yield


def _continuations(
    context: DecoderState, logits: Tensor, going: Sequence[_Beam], answer: PartialCompletion, most: int
) -> list[_Beam]:
    """The likeliest continuations by a token, the best first; `logits` are `[beams, vocab]`."""
    rules = answer.rules
    exceeding = normalizers(logits)
    of_model = logits - exceeding[:, None]
    seen = context.seen(logits.shape[-1]) if rules.repetition_penalty != 1 else None
    at_end = [len(beam.token_ids) == answer.limit - 1 for beam in going]
    allowed = apply_logit_rules(of_model, rules, seen=seen, at_start=not going[0].token_ids, at_end=at_end)
    totals = (allowed + to_device([[beam.score] for beam in going], logits.device)).flatten()
    scores, places = totals.topk(min(most, len(totals)))
    everything = exceeding.sum().expand(len(places))  # finite where each is
    told = read_finite(everything, scores, places, of_model.flatten()[places])
    found = []
    for score, place, logprob in zip(*told, strict=True):
        row, token_id = divmod(int(place), logits.shape[-1])
        if score > float("-inf"):
            beam = going[row]
            found.append(_Beam(row, (*beam.token_ids, token_id), (*beam.logprobs, logprob), score))
    return found


def _ends(beam: _Beam, answer: PartialCompletion) -> bool:
    ids = beam.token_ids
    if ids[-1] in answer.stop_ids or len(ids) >= answer.limit:
        return True
    text = answer.detokenizer.spell(ids) if answer.text_end.stop_texts else ""
    return any(stop in text for stop in answer.text_end.stop_texts)


def _is_over(leader: _Beam, finished: Sequence[_Beam], answer: PartialCompletion) -> bool:
    """Whether no better answer is to be hoped for: the worst finished one beats what the leading beam may become."""
    rules = answer.rules
    if len(finished) < rules.num_beams:
        return False
    if rules.early_stopping is True:
        return True
    to_the_limit = rules.early_stopping == "never" and rules.length_penalty > 0
    length = answer.limit if to_the_limit else len(leader.token_ids)
    return bool(leader.score / length**rules.length_penalty <= finished[-1].score)

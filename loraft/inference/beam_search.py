"""Beam search: several answers followed at once, of which the likeliest is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from loraft.inference.completion import PartialCompletion
from loraft.inference.decoder_state import DecoderState
from loraft.inference.sampling import apply_logit_rules, normalizers
from loraft.inference.sampling_params import SamplingParams


@dataclass(frozen=True)
class _Beam:
    """One of the answers that are followed.

    Attributes:
        row: The row of the context that it goes on from.
        token_ids: Its tokens, a stop id at the end included.
        logprobs: One a token, under the model.
        score: The sum of the logarithms, after the rules; of a finished one divided by length ** length_penalty.
    """

    row: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0


def search(
    context: DecoderState, answer: PartialCompletion, rules: SamplingParams, stop_ids: frozenset[int]
) -> Iterator[None]:
    """Find the likeliest answer, then let `answer` grow by its tokens at once; one `yield` a token.

    Source: Graves 2012, Sequence Transduction with Recurrent Neural Networks, section 2.5
        (https://arxiv.org/abs/1211.3711); the length in the score, Wu et al. 2016, GNMT, section 7
        (https://arxiv.org/abs/1609.08144), as transformers simplifies it.
    """
    going, finished, seconds = [_Beam(0)], list[_Beam](), list[float]()
    started = perf_counter()
    ids, mask = context.begin([answer.prompt_ids], start=rules.start)
    while going:
        candidates = _continuations(context, ids, mask, going, rules, max(2, 1 + len(stop_ids)), answer.limit)
        ended = [_ends(beam, answer, stop_ids) for beam in candidates]
        best = zip(candidates[: rules.num_beams], ended, strict=False)
        finished = _best([*finished, *(_finish(beam, rules) for beam, ends in best if ends)], rules)
        going = [beam for beam, ends in zip(candidates, ended, strict=True) if not ends][: rules.num_beams]
        if going and _is_over(going[0], finished, rules, answer.limit):
            going = []
        if going:
            context.keep([beam.row for beam in going])
            ids, mask = torch.tensor([beam.token_ids[-1:] for beam in going], device=context.device), None
        seconds.append(perf_counter() - started)
        started = perf_counter()
    yield from _grow(answer, finished[0], seconds, stop_ids, is_cut=bool(rules.last))


def _continuations(
    context: DecoderState,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    going: Sequence[_Beam],
    rules: SamplingParams,
    a_beam: int,
    limit: int,
) -> list[_Beam]:
    """The likeliest continuations by a token, the best first: `a_beam` for each beam that is followed.

    So many that enough go on even where every beam could end with each of the stop ids.
    """
    logits = context.read(ids, mask)
    of_model = logits - normalizers(logits)[:, None]
    seen = context.seen(logits.shape[-1]) if rules.repetition_penalty != 1 else None
    at_end = [len(beam.token_ids) == limit - 1 for beam in going]
    allowed = apply_logit_rules(of_model, rules, seen=seen, at_start=not going[0].token_ids, at_end=at_end)
    totals = (allowed + torch.tensor([[beam.score] for beam in going], device=context.device)).flatten()
    scores, places = totals.topk(min(a_beam * rules.num_beams, len(totals)))
    logprobs = of_model.flatten()[places].tolist()
    found = []
    for score, place, logprob in zip(scores.tolist(), places.tolist(), logprobs, strict=True):
        row, token_id = divmod(place, logits.shape[-1])
        if score > float("-inf"):
            beam = going[row]
            found.append(_Beam(row, (*beam.token_ids, token_id), (*beam.logprobs, logprob), score))
    return found


def _ends(beam: _Beam, answer: PartialCompletion, stop_ids: frozenset[int]) -> bool:
    ids = beam.token_ids
    return ids[-1] in stop_ids or len(ids) >= answer.limit or answer.is_stopped_by(ids)


def _finish(beam: _Beam, rules: SamplingParams) -> _Beam:
    score = beam.score / len(beam.token_ids) ** rules.length_penalty
    return _Beam(beam.row, beam.token_ids, beam.logprobs, score)


def _best(finished: Sequence[_Beam], rules: SamplingParams) -> list[_Beam]:
    return sorted(finished, key=lambda beam: -beam.score)[: rules.num_beams]


def _is_over(leader: _Beam, finished: Sequence[_Beam], rules: SamplingParams, limit: int) -> bool:
    """Whether no better answer is to be hoped for: the worst finished one beats what the leading beam may become."""
    if len(finished) < rules.num_beams:
        return False
    if rules.early_stopping is True:
        return True
    to_the_limit = rules.early_stopping == "never" and rules.length_penalty > 0
    length = limit if to_the_limit else len(leader.token_ids)
    return bool(leader.score / length**rules.length_penalty <= finished[-1].score)


def _grow(
    answer: PartialCompletion, beam: _Beam, seconds: Sequence[float], stop_ids: frozenset[int], *, is_cut: bool
) -> Iterator[None]:
    """Give the answer its tokens; the time that the search took is spread over them.

    `is_cut` tells that the last token that the limit allows was forced.
    """
    rest = sum(seconds[1:]) / max(1, len(beam.token_ids) - 1)
    for index, (token_id, logprob) in enumerate(zip(beam.token_ids, beam.logprobs, strict=True)):
        took = seconds[0] if index == 0 else rest
        answer.take(token_id, logprob, took, stop_ids, is_cut=is_cut and answer.is_at_end)
        yield

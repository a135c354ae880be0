"""Which token comes next, as pure functions on logits.

The rules apply in transformers' order: repetition penalty, tokens that the model never says, the token that it must
begin with, the one that it must end with; and where a token is drawn, temperature, then top-k, then top-p, then min-p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from loraft.errors import NonFiniteError
from loraft.inference.sampling_params import SamplingParams

Stage = Literal["temperature", "top_k", "top_p", "min_p"]


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Positive logits of seen tokens divided by the penalty, negative ones multiplied with it.

    Args:
        logits: `[rows, vocab]`.
        seen: `[rows, vocab]`, True for the tokens that are there already.
        penalty: Above 0; above 1 makes seen tokens less likely.

    Returns:
        `[rows, vocab]`.

    Source: Keskar et al. 2019, CTRL, section 4.1 (https://arxiv.org/abs/1909.05858), with the sign seen to, as
        transformers does it.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_k(logits: Tensor, k: int) -> Tensor:
    """All logits but the `k` highest become -inf; those that tie with the k-th stay.

    Args:
        logits: `[..., vocab]`.
        k: How many stay; more than `vocab` keeps all.

    Returns:
        `[..., vocab]`.

    Source: Fan et al. 2018, Hierarchical Neural Story Generation (https://arxiv.org/abs/1805.04833).
    """
    kth_highest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth_highest, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """All logits outside the nucleus become -inf.

    The nucleus is the smallest set of likeliest tokens whose mass is at least `p`: the token that crosses `p` is
    in. The likeliest token always is.

    Args:
        logits: `[..., vocab]`.
        p: The mass, above 0 and at most 1.

    Returns:
        `[..., vocab]`.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1
        (https://arxiv.org/abs/1904.09751).
    """
    rising, order = logits.sort(dim=-1)
    # Summed from the unlikely end, as transformers does it: a tail of tiny masses is not lost beside a large one.
    outside = rising.softmax(-1).cumsum(-1) <= 1 - p
    outside[..., -1] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))


def min_p(logits: Tensor, p: float) -> Tensor:
    """All logits of tokens less than `p` times as likely as the likeliest become -inf.

    Args:
        logits: `[..., vocab]`.
        p: The share of the likeliest token's probability, from 0 to 1.

    Returns:
        `[..., vocab]`.

    Source: Nguyen et al. 2024, Min-p Sampling, section 3 (https://arxiv.org/abs/2407.01082).
    """
    shares = logits.softmax(-1)
    return logits.masked_fill(shares < p * shares.amax(-1, keepdim=True), float("-inf"))


def apply_logit_rules(
    logits: Tensor,
    rules: SamplingParams,
    *,
    seen: Tensor | None = None,
    at_start: bool = False,
    at_end: Sequence[bool] = (),
) -> Tensor:
    """The logits after what holds for greedy answers too: repetition penalty, and ids that must or must not come.

    Args:
        logits: `[rows, vocab]`, any floating dtype.
        rules: What holds.
        seen: `[rows, vocab]`, True for tokens that are there already; None where `rules` have no repetition penalty.
        at_start: Whether this is the first token of the answers.
        at_end: For each row whether this is the last token that its limit allows; none of them where it is empty.

    Returns:
        `[rows, vocab]`, float32.
    """
    logits = logits.float()
    if seen is not None and rules.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, rules.repetition_penalty)
    if at_start and rules.first is not None:
        logits = _only(logits, [rules.first])
    elif rules.never:
        logits = logits.index_fill(-1, _ids(rules.never, logits), float("-inf"))
    if rules.last and any(at_end):
        return torch.where(torch.tensor(at_end, device=logits.device)[:, None], _only(logits, rules.last), logits)
    return logits


def _only(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Nothing but these ids, each as likely as the other."""
    return torch.full_like(logits, float("-inf")).index_fill(-1, _ids(ids, logits), 0)


def _ids(ids: Sequence[int], logits: Tensor) -> Tensor:
    return torch.tensor(ids, device=logits.device)


def normalizers(logits: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials of each row: what its logits exceed their log-probabilities by.

    Args:
        logits: `[rows, vocab]`.

    Returns:
        `[rows]`.

    Raises:
        NonFiniteError: A logit is not a number, or infinite.
    """
    sums = logits.logsumexp(-1)
    if not sums.isfinite().all():
        raise NonFiniteError(
            "the model's logits are not finite, so no token can be chosen",
            remedy="Try model.dtype=float32 or bfloat16; if it stays, the weights or the adapter are damaged.",
        )
    return sums


def probabilities(logits: Tensor, rules: SamplingParams) -> Tensor:
    """The distribution that the next token is drawn from.

    Args:
        logits: `[..., vocab]`, any floating dtype; after `apply_logit_rules` where rules hold for greedy too.
        rules: Greedy rules put all mass on the highest logit (the first of several).

    Returns:
        `[..., vocab]`, float32; each row sums to 1.
    """
    logits = logits.float()
    if rules.greedy:
        return one_hot(logits.argmax(-1), logits.shape[-1]).float()
    *_, (_, left) = sampling_steps(logits, rules)
    return left.softmax(-1)


def sampling_steps(logits: Tensor, rules: SamplingParams) -> Iterator[tuple[Stage, Tensor]]:
    """The logits after each of the rules of sampling, in their order.

    Args:
        logits: `[..., vocab]`, float32.
        rules: Rules that are not greedy.

    Yields:
        The rule's name, and `[..., vocab]`, -inf for what it and those before it took out.
    """
    logits = logits / rules.temperature
    yield "temperature", logits
    if rules.top_k is not None:
        logits = top_k(logits, rules.top_k)
        yield "top_k", logits
    if rules.top_p is not None:
        logits = top_p(logits, rules.top_p)
        yield "top_p", logits
    if rules.min_p is not None:
        yield "min_p", min_p(logits, rules.min_p)


def sample(distributions: Tensor, generators: Sequence[Generator] | None) -> Tensor:
    """One token a row.

    Each row draws from a generator of its own, so that a row's tokens do not depend on its neighbours, and the
    global random state is never touched.

    Args:
        distributions: `[rows, vocab]`, from `probabilities`.
        generators: One a row, on the CPU; None takes the likeliest token.

    Returns:
        `[rows]`, the token ids, on the device of `distributions`.
    """
    if generators is None:
        return distributions.argmax(-1)
    # On the CPU for every device: the same seed then draws the same tokens from the same distribution.
    rows = zip(distributions.cpu(), generators, strict=True)
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in rows]
    return torch.cat(drawn).to(distributions.device)

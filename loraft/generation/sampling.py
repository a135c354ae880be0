"""Which token comes next, as pure functions on logits.

This module knows probabilities and one draw from them. It refuses to know models, tokenizers and stop ids.
The rules apply in transformers' order: temperature, then top-k, then top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot
from transformers import GenerationConfig

from loraft.errors import ConfigError, Problem
from loraft.generation.options import AnswerOptions

__all__ = ["GREEDY", "SamplingRules", "choose", "keep_nucleus", "keep_top", "probabilities"]


@dataclass(frozen=True)
class SamplingRules:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits: below 1 sharper, above 1 flatter. 0 is greedy: the likeliest token, always.
        top_k: Only this many of the likeliest tokens stay; None keeps all.
        top_p: Only the smallest set of likeliest tokens with at least this mass stays; None keeps all.

    Raises:
        ConfigError: If a value is out of its bounds; every such value is named.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(Problem(f"must be 0 (greedy) or above, not {self.temperature}", key="temperature"))
        if self.top_k is not None and self.top_k < 1:
            problems.append(Problem(f"must be at least 1, not {self.top_k}", key="top_k"))
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(Problem(f"must be above 0 and at most 1, not {self.top_p}", key="top_p"))
        if problems:
            raise ConfigError.several(problems)

    @classmethod
    def of(cls, defaults: GenerationConfig | None, options: AnswerOptions) -> SamplingRules:
        """What the caller asks for; what a model's own `generation_config` says where the caller says nothing.

        A `generation_config` that does not say `do_sample: true` is greedy, as in transformers. One that does,
        without a temperature, has temperature 1. Its `top_k: 0` means none.
        """
        if defaults is None or not defaults.do_sample:
            return cls(options.temperature or 0.0, options.top_k, options.top_p)
        own_temperature = 1.0 if defaults.temperature is None else defaults.temperature
        return cls(
            own_temperature if options.temperature is None else options.temperature,
            (defaults.top_k or None) if options.top_k is None else options.top_k,
            defaults.top_p if options.top_p is None else options.top_p,
        )

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn: the likeliest token is taken."""
        return self.temperature == 0


GREEDY = SamplingRules()


def keep_top(logits: Tensor, k: int) -> Tensor:
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


def keep_nucleus(logits: Tensor, p: float) -> Tensor:
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


def probabilities(logits: Tensor, rules: SamplingRules) -> Tensor:
    """The distribution that the next token is drawn from.

    Args:
        logits: `[..., vocab]`, any floating dtype.
        rules: Greedy rules put all mass on the highest logit (the first of several).

    Returns:
        `[..., vocab]`, float32; each row sums to 1.
    """
    logits = logits.float()
    if rules.greedy:
        return one_hot(logits.argmax(-1), logits.shape[-1]).float()
    logits = logits / rules.temperature
    if rules.top_k is not None:
        logits = keep_top(logits, rules.top_k)
    if rules.top_p is not None:
        logits = keep_nucleus(logits, rules.top_p)
    return logits.softmax(-1)


def choose(distributions: Tensor, generators: Sequence[Generator] | None) -> Tensor:
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

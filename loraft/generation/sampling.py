"""Which token comes next, as pure functions on logits.

This module knows probabilities and one draw from them. It refuses to know models, tokenizers and stop ids.
The rules apply in transformers' order: repetition penalty, tokens that the model never says, the token that it must
begin with; and where a token is drawn, temperature, then top-k, then top-p, then min-p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot
from transformers import GenerationConfig

from loraft.errors import ConfigError, NonFiniteError, Problem
from loraft.generation.options import AnswerOptions

__all__ = [
    "GREEDY",
    "SamplingRules",
    "allow",
    "choose",
    "keep_likely",
    "keep_nucleus",
    "keep_top",
    "normalizers",
    "penalize_repetition",
    "probabilities",
    "stages",
    "unheeded_defaults",
]

Stage = Literal["temperature", "top_k", "top_p", "min_p"]


@dataclass(frozen=True)
class SamplingRules:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits: below 1 sharper, above 1 flatter. 0 is greedy: the likeliest token, always.
        top_k: Only this many of the likeliest tokens stay; None keeps all.
        top_p: Only the smallest set of likeliest tokens with at least this mass stays; None keeps all.
        min_p: Only tokens at least this share as likely as the likeliest stay; None keeps all.
        repetition_penalty: Divides positive logits of tokens that were read or said, and multiplies negative ones;
            of an encoder-decoder only what the decoder read counts. 1 is none.
        num_beams: How many answers are followed at once; 1 follows one. Beams draw nothing: they are greedy.
        length_penalty: The exponent of the length that a beam's score is divided by.
        early_stopping: When beams end: True as soon as there are enough, False when better ones are unlikely,
            "never" when better ones cannot be.
        never: Ids that the model must not say.
        first: The id that an answer must begin with, such as a language's; None leaves it free.

    Raises:
        ConfigError: If a value is out of its bounds; every such value is named.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    never: tuple[int, ...] = ()
    first: int | None = None

    def __post_init__(self) -> None:
        infinite = float("inf")
        bounds = {
            "temperature": ("must be 0 (greedy) or above", 0 <= self.temperature < infinite),
            "top_k": ("must be at least 1", self.top_k is None or self.top_k >= 1),
            "top_p": ("must be above 0 and at most 1", self.top_p is None or 0 < self.top_p <= 1),
            "min_p": ("must be at least 0 and at most 1", self.min_p is None or 0 <= self.min_p <= 1),
            "repetition_penalty": ("must be above 0", 0 < self.repetition_penalty < infinite),
            "num_beams": ("must be at least 1", self.num_beams >= 1),
        }
        problems = [
            Problem(f"{bound}, not {getattr(self, key)}", key=key)
            for key, (bound, holds) in bounds.items()
            if not holds
        ]
        if self.num_beams > 1 and self.temperature > 0:
            remedy = "Beam search takes the likeliest answer and draws nothing: leave one of them out."
            problems.append(
                Problem(f"beams do not go with temperature {self.temperature}", key="num_beams", remedy=remedy)
            )
        if problems:
            raise ConfigError.several(problems)

    @classmethod
    def of(cls, defaults: GenerationConfig | None, options: AnswerOptions) -> SamplingRules:
        """What the caller asks for; what a model's own `generation_config` says where the caller says nothing.

        A `generation_config` that does not say `do_sample: true` is greedy, as in transformers. One that does,
        without a temperature, has temperature 1. Its `top_k: 0` means none. Beams that were saved are for greedy
        answers: a caller who asks for a temperature gets none.
        """
        own = _saved_rules(defaults) if defaults is not None else cls()
        asked = {name: getattr(options, name) for name in ASKED if getattr(options, name) is not None}
        if asked.get("temperature", own.temperature) > 0 and "num_beams" not in asked:
            asked["num_beams"] = 1
        elif asked.get("num_beams", 1) > 1 and "temperature" not in asked:
            asked["temperature"] = 0.0
        return replace(own, **asked)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn: the likeliest token is taken."""
        return self.temperature == 0


ASKED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams")
"""The rules that a caller may set, by their names in `AnswerOptions`."""
GREEDY = SamplingRules()
UNHEEDED = {
    "bad_words_ids": None, "begin_suppress_tokens": None, "constraints": None, "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None, "force_words_ids": None, "guidance_scale": 1.0,
    "min_length": 0, "min_new_tokens": None, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "penalty_alpha": None, "sequence_bias": None, "typical_p": 1.0,
}  # fmt: skip
"""What a generation_config may ask for and loraft does not do, with the value that asks for nothing."""


def unheeded_defaults(defaults: GenerationConfig | None) -> tuple[str, ...]:
    """The settings of a saved `generation_config` that change answers in transformers and not here, as `key=value`."""
    saved: dict[str, Any] = defaults.to_diff_dict() if defaults is not None else {}
    return tuple(
        f"{key}={saved[key]}"
        for key, nothing in UNHEEDED.items()
        if saved.get(key) not in (None, nothing) and not (key == "bad_words_ids" and _all_single(saved[key]))
    )


def _saved_rules(defaults: GenerationConfig) -> SamplingRules:
    """What a `generation_config` says; its sampling only where it says `do_sample: true`."""
    sampling: dict[str, Any] = {}
    beams = defaults.num_beams or 1
    if defaults.do_sample:
        temperature = 1.0 if defaults.temperature is None else defaults.temperature
        sampling = {"temperature": temperature, "top_k": defaults.top_k or None, "top_p": defaults.top_p}
        sampling["min_p"] = defaults.min_p
        beams = 1
    never = [words[0] for words in defaults.bad_words_ids or () if len(words) == 1]
    stopping: Any = defaults.early_stopping
    return SamplingRules(
        **sampling,
        repetition_penalty=1.0 if defaults.repetition_penalty is None else defaults.repetition_penalty,
        num_beams=beams,
        length_penalty=1.0 if defaults.length_penalty is None else defaults.length_penalty,
        early_stopping=False if stopping is None else stopping,
        never=tuple(dict.fromkeys([*never, *(defaults.suppress_tokens or ())])),
        first=defaults.forced_bos_token_id,
    )


def _all_single(words: Sequence[Sequence[int]]) -> bool:
    return all(len(word) == 1 for word in words)


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


def keep_likely(logits: Tensor, p: float) -> Tensor:
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


def allow(logits: Tensor, rules: SamplingRules, *, seen: Tensor | None = None, at_start: bool = False) -> Tensor:
    """The logits after what holds for greedy answers too: repetition penalty, and ids that must or must not come.

    Args:
        logits: `[rows, vocab]`, any floating dtype.
        rules: What holds.
        seen: `[rows, vocab]`, True for tokens that are there already; None where `rules` have no repetition penalty.
        at_start: Whether this is the first token of an answer.

    Returns:
        `[rows, vocab]`, float32.
    """
    logits = logits.float()
    if seen is not None and rules.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, rules.repetition_penalty)
    if at_start and rules.first is not None:
        return torch.full_like(logits, float("-inf")).index_fill(-1, _ids([rules.first], logits), 0)
    if rules.never:
        logits = logits.index_fill(-1, _ids(rules.never, logits), float("-inf"))
    return logits


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


def probabilities(logits: Tensor, rules: SamplingRules) -> Tensor:
    """The distribution that the next token is drawn from.

    Args:
        logits: `[..., vocab]`, any floating dtype; after `allow` where the rules say what holds for greedy too.
        rules: Greedy rules put all mass on the highest logit (the first of several).

    Returns:
        `[..., vocab]`, float32; each row sums to 1.
    """
    logits = logits.float()
    if rules.greedy:
        return one_hot(logits.argmax(-1), logits.shape[-1]).float()
    *_, (_, left) = stages(logits, rules)
    return left.softmax(-1)


def stages(logits: Tensor, rules: SamplingRules) -> Iterator[tuple[Stage, Tensor]]:
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
        logits = keep_top(logits, rules.top_k)
        yield "top_k", logits
    if rules.top_p is not None:
        logits = keep_nucleus(logits, rules.top_p)
        yield "top_p", logits
    if rules.min_p is not None:
        yield "min_p", keep_likely(logits, rules.min_p)


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

"""Which token comes next: the rules, as a caller and a generation_config.json say them, and pure functions on logits.

The rules apply in transformers' order: repetition penalty, tokens that the model never says, the token that it must
begin with, the one that it must end with; and where a token is drawn, temperature, then top-k, then top-p, then min-p.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError
from torch import Generator, Tensor
from transformers import GenerationConfig, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import GENERATION_CONFIG_NAME

from loraft.errors import ConfigError, ModelError, NonFiniteError, Problem
from loraft.inference.requests import GenerationRequest
from loraft.kernels.transfer import to_device
from loraft.models.auto_model import generation_defaults_in

Stage = Literal["temperature", "top_k", "top_p", "min_p"]
WARPERS: dict[Stage, Any] = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn; values out of their bounds are refused, all at once.

    Attributes:
        temperature: Divides the logits: below 1 sharper, above 1 flatter. 0 is greedy: the likeliest token, always.
        repetition_penalty: Divides positive logits of tokens that were read or said, and multiplies negative ones;
            of an encoder-decoder only what the decoder read counts. 1 is none.
        num_beams: How many answers are followed at once; 1 follows one. Beams draw nothing: they are greedy.
        length_penalty: The exponent of the length that a beam's score is divided by.
        early_stopping: When beams end: True as soon as there are enough, False when better ones are unlikely,
            "never" when better ones cannot be.
        first: The id that an answer must begin with, such as a language's; None leaves it free.
        last: The ids of which one must come where the limit leaves room for one token; none leave it free.
        start: The id that a decoder behind an encoder reads first; None is the model's own.
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
    last: tuple[int, ...] = ()
    start: int | None = None

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
        wrong = {key: bound for key, (bound, holds) in bounds.items() if not holds}
        problems = [Problem(f"{bound}, not {getattr(self, key)}", key=key) for key, bound in wrong.items()]
        if self.num_beams > 1 and self.temperature > 0:
            remedy = "Beam search takes the likeliest answer and draws nothing: leave one of them out."
            message = f"beams do not go with temperature {self.temperature}"
            problems.append(Problem(message, key="num_beams", remedy=remedy))
        if problems:
            raise ConfigError.several(problems)

    @classmethod
    def of(cls, defaults: GenerationConfig | None, options: GenerationRequest) -> SamplingParams:
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

    def beginning_with(self, tokens: Mapping[str, int | None]) -> SamplingParams:
        """The same for answers that begin with these tokens, which are named as in transformers' generation config."""
        if not tokens:
            return self
        return replace(self, start=tokens["decoder_start_token_id"], first=tokens.get("forced_bos_token_id"))

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn: the likeliest token is taken."""
        return self.temperature == 0


ASKED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams")
"""The rules that a caller may set, by their names in `GenerationRequest`."""
GREEDY = SamplingParams()
UNHEEDED = {
    "bad_words_ids": None, "begin_suppress_tokens": None, "constraints": None, "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None, "force_words_ids": None, "guidance_scale": 1.0,
    "max_length": None, "min_length": 0, "min_new_tokens": None, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "penalty_alpha": None, "sequence_bias": None, "typical_p": 1.0,
}  # fmt: skip
"""What a generation_config may ask for and loraft does not do, with the value that asks for nothing."""


def saved_limit(defaults: GenerationConfig | None, *, reads_source: bool) -> int | None:
    """The most tokens of an answer that a saved `generation_config` asks for; None where it does not.

    `max_length` counts what the decoder reads before them: its start token behind an encoder that reads the source,
    and else the prompt, for which it is not heeded.
    """
    if defaults is None:
        return None
    of_whole = defaults.max_length - 1 if reads_source and defaults.max_length else None
    return defaults.max_new_tokens or of_whole


def unheeded_defaults(defaults: GenerationConfig | None, *, reads_source: bool) -> tuple[str, ...]:
    """The settings of a saved `generation_config` that change answers in transformers and not here, as `key=value`."""
    saved: dict[str, Any] = defaults.to_diff_dict() if defaults is not None else {}
    if saved_limit(defaults, reads_source=reads_source):  # of the two it is max_new_tokens in transformers, too
        saved.pop("max_length", None)
    if all(len(words) == 1 for words in saved.get("bad_words_ids") or ()):  # such words are never said here either
        saved.pop("bad_words_ids", None)
    return tuple(f"{key}={saved[key]}" for key, nothing in UNHEEDED.items() if saved.get(key) not in (None, nothing))


def _saved_rules(defaults: GenerationConfig) -> SamplingParams:
    """What a `generation_config` says; its sampling only where it says `do_sample: true`."""
    sampling: dict[str, Any] = {"num_beams": defaults.num_beams or 1}
    if defaults.do_sample:
        temperature = 1.0 if defaults.temperature is None else defaults.temperature
        sampling = {"temperature": temperature, "top_k": defaults.top_k or None}
        sampling |= {"top_p": defaults.top_p, "min_p": defaults.min_p}
    never = [words[0] for words in defaults.bad_words_ids or () if len(words) == 1]
    stopping: Any = defaults.early_stopping
    last: int | list[int] | None = defaults.forced_eos_token_id
    return SamplingParams(
        **sampling,
        repetition_penalty=1.0 if defaults.repetition_penalty is None else defaults.repetition_penalty,
        length_penalty=1.0 if defaults.length_penalty is None else defaults.length_penalty,
        early_stopping=False if stopping is None else stopping,
        never=tuple(dict.fromkeys([*never, *(defaults.suppress_tokens or ())])),
        first=defaults.forced_bos_token_id,
        last=() if last is None else (last,) if isinstance(last, int) else tuple(last),
        start=defaults.decoder_start_token_id,
    )


class _Heeded(BaseModel):
    """The values that loraft heeds, with their types."""

    model_config = ConfigDict(extra="ignore", strict=True, from_attributes=True)

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: NonNegativeInt | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: PositiveInt | None = None
    length_penalty: FiniteFloat | None = None
    forced_bos_token_id: NonNegativeInt | None = None
    forced_eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = None
    decoder_start_token_id: NonNegativeInt | None = None
    suppress_tokens: list[NonNegativeInt] | None = None
    bad_words_ids: list[list[NonNegativeInt]] | None = None
    stop_strings: str | list[str] | None = None
    max_length: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = None


NAMING_TOKENS = (
    "suppress_tokens",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "decoder_start_token_id",
)
"""Keys whose tokens are looked up in the logits or the embeddings."""


def saved_defaults(folder: Path, vocabulary: int | None = None) -> GenerationConfig | None:
    """The defaults that lie in a folder, if the values that loraft heeds have their types; None where none do.

    Tokens beyond the `vocabulary`, where that is known, are refused.
    """
    defaults = generation_defaults_in(folder)
    return None if defaults is None else checked(defaults, folder / GENERATION_CONFIG_NAME, vocabulary)


def checked(defaults: GenerationConfig, file: Path, vocabulary: int | None = None) -> GenerationConfig:
    """Defaults that a file gives, if the values that loraft heeds have their types, and the model has their tokens."""
    try:
        _Heeded.model_validate(defaults)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]): detail for detail in error.errors()}
        raise ModelError.several(
            Problem(f"{detail['input']!r} is not taken here: {detail['msg']}", str(file), key)
            for key, detail in wrong.items()
        ) from error
    problems = [
        Problem(f"names the token {last:,}, and the model has {vocabulary:,}", str(file), key)
        for key in NAMING_TOKENS
        if vocabulary is not None and (last := max(_numbers(getattr(defaults, key)), default=0)) >= vocabulary
    ]
    if problems:
        raise ModelError.several(problems)
    return defaults


def _numbers(value: object) -> Iterator[int]:
    """The numbers in a value: itself, or those of a list."""
    if isinstance(value, list):
        yield from chain.from_iterable(map(_numbers, value))
    elif isinstance(value, int):
        yield value


def apply_logit_rules(
    logits: Tensor,
    rules: SamplingParams,
    *,
    seen: Tensor | None = None,
    at_start: bool = False,
    at_end: Sequence[bool] = (),
) -> Tensor:
    """The logits after what holds for greedy answers too: repetition penalty, and ids that must or must not come.

    They are `[rows, vocab]`, and float32 afterwards; so is `seen`, True for tokens that are there already. `at_end`
    tells of each row whether this is the last token that its limit allows; empty is of none.

    Source: Keskar et al. 2019, CTRL, section 4.1 (https://arxiv.org/abs/1909.05858), for the penalty, with the sign
        seen to, as transformers does it.
    """
    logits = logits.float()
    if seen is not None and rules.repetition_penalty != 1:
        penalized = torch.where(logits < 0, logits * rules.repetition_penalty, logits / rules.repetition_penalty)
        logits = torch.where(seen, penalized, logits)
    if at_start and rules.first is not None:
        logits = _only(logits, [rules.first])
    elif rules.never:
        logits = logits.index_fill(-1, to_device(rules.never, logits.device), float("-inf"))
    if rules.last and any(at_end):
        ends = to_device(at_end, logits.device)
        return torch.where(ends[:, None], _only(logits, rules.last), logits)
    return logits


def _only(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Nothing but these ids, each as likely as the other."""
    return torch.full_like(logits, float("-inf")).index_fill(-1, to_device(ids, logits.device), 0)


def normalizers(logits: Tensor) -> Tensor:
    """What logits `[rows, vocab]` exceed their log-probabilities by, `[rows]`: finite where all of them are."""
    return logits.logsumexp(-1)


def not_finite() -> NonFiniteError:
    """That no token can be chosen."""
    message = "the model's logits are not finite, so no token can be chosen"
    remedy = "Try model.dtype=float32 or bfloat16; if it stays, the weights or the adapter are damaged."
    return NonFiniteError(message, remedy=remedy)


def read_finite(normalizer: Tensor, *others: Tensor) -> list[list[float]]:
    """The numbers of tensors of one shape, those of `others`: the host waits once for the device, for all of them.

    Raises:
        NonFiniteError: A number of `normalizer` is not finite.
    """
    told, *numbers = torch.stack([tensor.double() for tensor in (normalizer, *others)]).tolist()
    if not all(map(math.isfinite, told)):
        raise not_finite()
    return cast("list[list[float]]", numbers)


def probabilities(logits: Tensor, rules: SamplingParams) -> Tensor:
    """The distribution that the next token is drawn from by rules that are not greedy, `[rows, vocab]`, float32."""
    *_, (_, left) = sampling_steps(logits.float(), rules)
    return left.softmax(-1)


def sampling_steps(logits: Tensor, rules: SamplingParams) -> Iterator[tuple[Stage, Tensor]]:
    """The logits after each of the rules of sampling, in their order, `[rows, vocab]`: -inf for what they took out."""
    logits = logits / rules.temperature
    yield "temperature", logits
    for stage, warper in WARPERS.items():
        if (value := getattr(rules, stage)) is not None:
            logits = warper(value)(None, logits)
            yield stage, logits


def sample(distributions: Tensor, generators: Sequence[Generator]) -> Tensor:
    """One token a row, `[rows]`, from distributions `[rows, vocab]`.

    Each row draws from a generator of its own, of the CPU, so that a row's tokens do not depend on its neighbours, and
    the global random state is never touched. On CUDA a row takes one number from it, which the host need not wait for;
    torch's own draw looks at the distribution on the host. So a seed draws other tokens there than on a CPU.

    Raises:
        NonFiniteError: On a CPU; elsewhere distributions that are no numbers give any token.
    """
    if distributions.device.type == "cpu":
        if not distributions[:, 0].isfinite().all():  # of a softmax all are, or none
            raise not_finite()
        rows = zip(distributions, generators, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    return inverse_draw(distributions, generators)


def inverse_draw(distributions: Tensor, generators: Sequence[Generator]) -> Tensor:
    """The tokens, `[rows]`, where the sums of distributions `[rows, vocab]` pass a number of each row's generator."""
    drawn = torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    # Below 1 by more than rounding, so that a token of probability 0 behind the last one is never reached.
    points = to_device(drawn.clamp(max=1 - 2**-30), distributions.device)[:, None]
    sums = distributions.double().cumsum(-1)
    places = torch.searchsorted(sums, points * sums[:, -1:], right=True)
    return places[:, 0].clamp(max=distributions.shape[1] - 1)

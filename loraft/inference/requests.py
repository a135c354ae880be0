"""What a caller may say of an answer and of the model that gives it, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loraft.config.choices import DtypeName

if TYPE_CHECKING:
    from loraft.config.sections import QuantizationSection

Text = TypeVar("Text")


@dataclass(frozen=True)
class ModelRequest:
    """What answers.

    Attributes:
        target: A base model, an adapter, a run, a checkpoint or a config; None where the adapters bring their base.
        adapters: Adapters to put on it, `NAME=DIR` or `DIR`; the first one answers where nobody says which.
        base_model: The base to use, whatever the adapters name.
        quantize: Store the base in 4 or 8 bits; None stores it as it was in training.
        dtype: Compute in it; None computes in float32 what was trained so, and the rest as the device likes best.
        merge: Fold the one adapter into the weights; the base without it is then gone.
        source_lang: The language of what an encoder-decoder reads, as its tokenizer or the rows call it; None is the
            one that was trained with.
        target_lang: That of what it writes.
        trust_remote_code: Run the code that the model brings.
        cuda_graphs: On CUDA, launch a step of decoding as one graph where the model can be recorded.
    """

    target: str | None
    adapters: Sequence[str] = ()
    base_model: str | None = None
    quantize: QuantizationSection | None = None
    dtype: DtypeName | None = None
    merge: bool = False
    source_lang: str | None = None
    target_lang: str | None = None
    trust_remote_code: bool = False
    cuda_graphs: bool = True


AnyModel = ModelRequest | str | Path
"""What answers, or its target alone."""


def several(texts: str | Sequence[Text]) -> Sequence[str | Text]:
    """Texts, or one by itself, which is no sequence of its letters."""
    return [texts] if isinstance(texts, str) else texts


@dataclass(frozen=True)
class GenerationRequest:
    """How an answer is made; whatever is None is as it was saved with the adapter, or as the base has it.

    Attributes:
        system: The system prompt.
        max_new_tokens: The most tokens of an answer.
        temperature: 0 is greedy.
        top_p: Sample among the likeliest that hold this probability.
        top_k: Sample among this many of the likeliest tokens.
        seed: The seed of sampling; None is another one each time.
        min_p: Sample among the tokens that are at least this share as likely as the likeliest.
        repetition_penalty: Divides the scores of tokens that are there already: above 1 repeats less; 1 is none.
        stop: Texts that end the answer; those that were saved end it too.
        num_beams: How many answers are followed at once, of which the likeliest is given; 1 is no beam search.
    """

    system: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    num_beams: int | None = None

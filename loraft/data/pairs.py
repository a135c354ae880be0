"""Sources and targets as tokens: made here for training, evaluation and generation alike.

This module knows what stands around the two texts: a prefix before the source, the codes of languages where the
tokenizer has them, and the end-of-text token that the tokenizer puts behind each. It refuses to know the model: how a
target becomes the decoder's input is the model's own affair.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraft.config.schema import DataSection
from loraft.data.examples import TOKENIZED_TOGETHER, Example, PairExample
from loraft.data.formats import Message, Pair, Record
from loraft.errors import DataError

__all__ = ["PairRenderer", "closed"]


@dataclass(frozen=True, eq=False)
class PairRenderer:
    """The one way from sources and targets to tokens, for one tokenizer.

    Attributes:
        tokenizer: The model's.
        prefix: What stands before every source.
        source_lang: The tokenizer's code of the sources' language; None where it has none.
        target_lang: That of the targets.
        notes: What was decided, a sentence each.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prefix: str = "",
        source_lang: str | None = None,
        target_lang: str | None = None,
    ) -> PairRenderer:
        """The renderer for a tokenizer and the settings of a `data` section.

        Raises:
            DataError: The tokenizer needs to know languages, and they are not set or not among its own.
        """
        codes = _codes(tokenizer)
        if not codes:
            return cls(tokenizer, prefix)
        for key, code in (("data.source_lang", source_lang), ("data.target_lang", target_lang)):
            if code not in codes:
                raise _no_language(key, code, codes)
        return cls(tokenizer, prefix, source_lang, target_lang)

    @property
    def chat_template(self) -> str | None:
        """None: sources are plain texts."""
        return None

    @property
    def system_prompt(self) -> str | None:
        """None: a source has no conversation around it."""
        return None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends an answer."""
        eos = self.tokenizer.eos_token_id
        return (eos,) if isinstance(eos, int) else ()

    @property
    def forced_bos_id(self) -> int | None:
        """The token that every answer begins with: that of the target's language; None where there is none."""
        if self.target_lang is None:
            return None
        return int(_codes(self.tokenizer)[self.target_lang])

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights, so that sources are rendered the same way later."""
        return {"source_prefix": self.prefix, "source_lang": self.source_lang, "target_lang": self.target_lang}

    def render(self, record: Record) -> Pair:
        """The record with the prefix before its source."""
        assert isinstance(record, Pair), "formats give pairs for seq2seq_lm"
        return Pair(self.prefix + record.source, record.target)

    def examples(self, rendered: Sequence[Pair], where: Sequence[str]) -> list[PairExample]:
        """Pairs as tokens, each text ended by the tokenizer's own end-of-text token."""
        found: list[PairExample] = []
        for start in range(0, len(rendered), TOKENIZED_TOGETHER):
            pairs, places = rendered[start : start + TOKENIZED_TOGETHER], where[start : start + TOKENIZED_TOGETHER]
            with self._languages():
                sources: Any = self.tokenizer([pair.source for pair in pairs], verbose=False)
                targets: Any = self.tokenizer(text_target=[pair.target for pair in pairs], verbose=False)
            each = zip(sources["input_ids"], targets["input_ids"], places, strict=True)
            found += [PairExample(list(source), list(target), place) for source, target, place in each]
        return found

    def too_long(self, example: Example, limits: DataSection) -> str | None:
        """How an example exceeds `data.max_length` or `data.max_target_length`; None where it does not."""
        if len(example.input_ids) > limits.max_length:
            return f"has a source of {len(example.input_ids):,} tokens, more than data.max_length {limits.max_length:,}"
        most = limits.max_target_length or limits.max_length
        if len(example.labels) > most:
            key = "data.max_target_length" if limits.max_target_length else "data.max_length"
            return f"has a target of {len(example.labels):,} tokens, more than {key} {most:,}"
        return None

    def cut(self, rendered: Pair, example: Example, limits: DataSection, choice: str) -> list[PairExample]:
        """The beginnings of source and target.

        The source is closed as every source is; a target that is cut does not end there, so nothing says that it does.
        """
        most = limits.max_target_length or limits.max_length
        ids = closed(example.input_ids, limits.max_length, self.tokenizer)
        return [PairExample(ids, example.labels[:most], example.where)]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a source, which is the last message's text behind the prefix."""
        with self._languages():
            return list(self.tokenizer(self.prefix + messages[-1].content, verbose=False)["input_ids"])

    def marked(self, example: Example) -> str:
        """The source, and the target in ⟦ ⟧."""
        return f"{self.tokenizer.decode(example.input_ids)} ⟦{self.tokenizer.decode(example.labels)}⟧"

    @contextmanager
    def _languages(self) -> Iterator[None]:
        """The tokenizer set to the languages, for as long as it is used."""
        if self.source_lang is None:
            yield
            return
        tokenizer: Any = self.tokenizer
        before = tokenizer.src_lang, tokenizer.tgt_lang
        tokenizer.src_lang, tokenizer.tgt_lang = self.source_lang, self.target_lang
        try:
            yield
        finally:
            tokenizer.src_lang, tokenizer.tgt_lang = before


def closed(ids: Sequence[int], most: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first `most` tokens, those special ones that close the text kept at the end."""
    if len(ids) <= most:
        return list(ids)
    special = set(tokenizer.all_special_ids)
    end = len(ids)
    while end and ids[end - 1] in special:
        end -= 1
    closing = ids[end:]
    return [*ids[: most - len(closing)], *closing][:most]


def _codes(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """The codes of languages that a multilingual tokenizer takes, with their tokens; none of another."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    known: Any = getattr(tokenizer, "lang_code_to_id", None)
    if isinstance(known, Mapping) and known:
        return {str(code): int(number) for code, number in known.items()}
    names: Any = getattr(tokenizer, "additional_special_tokens", ())
    numbers: Any = tokenizer.convert_tokens_to_ids(list(names))
    return {str(name): int(number) for name, number in zip(names, numbers, strict=True)}


def _no_language(key: str, code: str | None, codes: Mapping[str, int]) -> DataError:
    if code is None:
        message = "is not set, and the tokenizer begins every text with the code of its language"
    else:
        message = f"{code!r} is none of the {len(codes)} languages of the tokenizer"
    near = difflib.get_close_matches(code or "", codes, n=3, cutoff=0.4) or sorted(codes)[:5]
    return DataError(message, key=key, remedy=f"Codes look like {', '.join(near)}.")

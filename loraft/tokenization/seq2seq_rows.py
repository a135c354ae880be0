"""Sources and targets as tokens: made here for training, evaluation and generation alike.

A source may have a prefix and the codes of languages. Every target ends with the end-of-text token, even where the
tokenizer puts none.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from loraft.config.choices import SpecialTokensInText
from loraft.config.sections import DataSection
from loraft.errors import DataError
from loraft.rows.formats import Message, Record, Seq2SeqRecord
from loraft.tokenization.examples import Example
from loraft.tokenization.long_texts import LongTexts
from loraft.tokenization.row_renderer import PlainTextRenderer


@dataclass(frozen=True, eq=False)
class Seq2SeqRenderer(PlainTextRenderer):
    """The one way from sources and targets to tokens, for one tokenizer.

    Attributes:
        tokenizer: The model's.
        prefix: What stands before every source.
        source_lang: The language of the sources: the tokenizer's code of it where it has codes.
        target_lang: That of the targets.
        notes: What was decided, a sentence each.
        special_tokens_in_text: What is done with control tokens that are written in a text.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None
    notes: tuple[str, ...] = ()
    special_tokens_in_text: SpecialTokensInText = "text"

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prefix: str = "",
        source_lang: str | None = None,
        target_lang: str | None = None,
        special_tokens_in_text: SpecialTokensInText = "text",
    ) -> Seq2SeqRenderer:
        """The renderer for a tokenizer and the settings of a `data` section.

        Raises:
            DataError: The tokenizer needs to know languages, and they are not set or not among its own.
        """
        codes = _codes(tokenizer)
        for key, code in (("data.source_lang", source_lang), ("data.target_lang", target_lang)):
            if codes and code not in codes:
                raise _no_language(key, code, codes)
        return cls(tokenizer, prefix, source_lang, target_lang, special_tokens_in_text=special_tokens_in_text)

    labels: ClassVar[tuple[str, ...]] = ()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends an answer."""
        eos = self.tokenizer.eos_token_id
        return (eos,) if isinstance(eos, int) else ()

    @property
    def knows_languages(self) -> bool:
        """Whether the tokenizer writes the language of a text into its tokens."""
        return bool(_codes(self.tokenizer))

    @property
    def forced_bos_id(self) -> int | None:
        """The token that every answer begins with: that of the target's language.

        None where there is none, and where targets end with it: mBART-25's decoder begins from it instead.
        """
        language = _codes(self.tokenizer).get(self.target_lang or "")
        return language if language in self.target_ids("")[:1] else None

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights, so that sources are rendered the same way later."""
        return {
            "source_prefix": self.prefix,
            "source_lang": self.source_lang,
            "target_lang": self.target_lang,
            **self.control_tokens.recorded,
        }

    def findings(self, rendered: Seq2SeqRecord) -> tuple[str, ...]:
        """What a person should know of a pair, each with what can be done."""
        return self.control_tokens.findings([rendered.source, rendered.target])

    @property
    def _texts(self) -> LongTexts:
        return LongTexts(self.tokenizer, literal=self.control_tokens.as_text)

    def render(self, record: Record) -> Seq2SeqRecord:
        """The record with the prefix before its source.

        Raises:
            DataError: It has a control token, and the config refuses these.
        """
        assert isinstance(record, Seq2SeqRecord), "the task gives pairs"
        self.control_tokens.refuse([record.source, record.target])
        return Seq2SeqRecord(self.prefix + record.source, record.target)

    def examples(self, rendered: Sequence[Seq2SeqRecord], where: Sequence[str]) -> list[Example]:
        """Pairs as tokens, every target with the end-of-text token: without it no answer would learn to end."""
        with self._languages():
            sources = self._texts.read([pair.source for pair in rendered])
        targets = self._target_ids([pair.target for pair in rendered])
        each = zip(sources, targets, where, strict=True)
        return [Example.of_pair(source.ids, target, place) for source, target, place in each]

    def beginning(self, rendered: Seq2SeqRecord, limits: DataSection) -> Seq2SeqRecord:
        """A pair with the beginning of a text that is itself too long; where none is that long, the pair."""
        with self._languages():
            source = self._texts.beginning(rendered.source, limits.max_length)
            most = limits.max_target_length or limits.max_length
            target = replace(self._texts, target=True).beginning(rendered.target, most)
        whole = (len(source), len(target)) == (len(rendered.source), len(rendered.target))
        return rendered if whole else Seq2SeqRecord(source, target)

    def target_ids(self, text: str) -> list[int]:
        """The tokens of a target."""
        return self._target_ids([text])[0]

    def _target_ids(self, texts: Sequence[str]) -> list[list[int]]:
        with self._languages():
            read = replace(self._texts, target=True).read(texts)
        end = self.stop_ids
        # mBART-25 puts the language behind the end-of-text token.
        return [tokens.ids if set(end) <= set(tokens.ids[-2:]) else [*tokens.ids, *end] for tokens in read]

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How an example exceeds `data.max_length` or `data.max_target_length`; None where it does not."""
        if len(example.input_ids) > limits.max_length:
            length = f"{least}{len(example.input_ids):,}"
            return f"has a source of {length} tokens, more than data.max_length {limits.max_length:,}"
        most = limits.max_target_length or limits.max_length
        if len(example.labels) > most:
            key = "data.max_target_length" if limits.max_target_length else "data.max_length"
            return f"has a target of {least}{len(example.labels):,} tokens, more than {key} {most:,}"
        return None

    def cut(self, rendered: Seq2SeqRecord, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The beginnings of source and target.

        The source is closed as every source is; a target that is cut does not end there, so nothing says that it does.
        """
        most = limits.max_target_length or limits.max_length
        ids = truncate_keep_eos(example.input_ids, limits.max_length, self.tokenizer)
        return [Example.of_pair(ids, example.labels[:most], example.where)]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a source, which is the last message's text behind the prefix."""
        self.control_tokens.refuse([messages[-1].content])
        with self._languages():
            return self._texts.read([self.prefix + messages[-1].content])[0].ids

    def marked(self, example: Example) -> str:
        """The source, and the target in ⟦ ⟧."""
        return f"{self.tokenizer.decode(example.input_ids)} ⟦{self.tokenizer.decode(example.labels)}⟧"

    @contextmanager
    def _languages(self) -> Iterator[None]:
        """The tokenizer set to the languages, for as long as it is used."""
        tokenizer: Any = self.tokenizer
        if not self.knows_languages:
            yield
            return
        before = tokenizer.src_lang, tokenizer.tgt_lang
        tokenizer.src_lang, tokenizer.tgt_lang = self.source_lang, self.target_lang
        try:
            yield
        finally:
            tokenizer.src_lang, tokenizer.tgt_lang = before


def truncate_keep_eos(ids: Sequence[int], most: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first `most` tokens, those special ones that close the text kept at the end."""
    if len(ids) <= most:
        return list(ids)
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}  # an unknown word closes nothing
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
    # NLLB's are its special tokens, those in angle brackets aside.
    names = [name for name in map(str, tokenizer.extra_special_tokens) if not name.startswith("<")]
    numbers: Any = tokenizer.convert_tokens_to_ids(names)
    return {name: int(number) for name, number in zip(names, numbers, strict=True) if number != tokenizer.unk_token_id}


def _no_language(key: str, code: str | None, codes: Mapping[str, int]) -> DataError:
    if code is None:
        message = "is not set, and the tokenizer begins every text with the code of its language"
    else:
        message = f"{code!r} is none of the {len(codes)} languages of the tokenizer"
    # Rows say `en` where tokenizers say `en_XX` and `eng_Latn`.
    longer = [each for each in sorted(codes) if code and each.startswith(code)][:3]
    near = longer or difflib.get_close_matches(code or "", codes, n=3, cutoff=0.4) or sorted(codes)[:5]
    return DataError(message, key=key, remedy=f"Codes look like {', '.join(near)}.")

"""Sources with targets, and texts with classes, as tokens: made here for training, evaluation and answers alike.

A source may have a prefix and the codes of languages. Every target ends with the end-of-text token, even where the
tokenizer puts none.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraft.config.sections import DataSection
from loraft.errors import DataError
from loraft.rows.formats import ClassificationRecord, Record, Seq2SeqRecord
from loraft.rows.labels import class_number
from loraft.tokenization.examples import Example, RowRenderer
from loraft.tokenization.long_texts import LongTexts, calls, require_readable

TOGETHER = (
    "the tokenizer puts nothing between the two texts of a pair: where they are to be told apart, begin text_pair "
    "with a line end or a word of yours, in training and in what is predicted"
)
NO_PAIR = "there is no text_pair, and training rows have one: give it, for a class is told by both texts together"
UNLEARNED_PAIR = "there is a text_pair, and training rows have none: leave it out, for what it means was not learned"


@dataclass(frozen=True, eq=False)
class Seq2SeqRenderer(RowRenderer):
    """The one way from sources and targets to tokens, for one tokenizer.

    Attributes:
        prefix: What stands before every source.
        source_lang: The language of the sources: the tokenizer's code of it where it has codes.
        target_lang: That of the targets.

    Raises:
        DataError: The tokenizer needs to know languages, and they are not set or not among its own.
    """

    prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None

    def __post_init__(self) -> None:
        codes = _codes(self.tokenizer)
        for key, code in (("data.source_lang", self.source_lang), ("data.target_lang", self.target_lang)):
            if codes and code not in codes:
                raise _no_language(key, code, codes)

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
        return language if language in self.target_ids([""])[0][:1] else None

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights, so that sources are rendered the same way later."""
        languages = {"source_lang": self.source_lang, "target_lang": self.target_lang}
        return {"source_prefix": self.prefix, **languages, **self.control_tokens.recorded}

    def findings(self, rendered: Seq2SeqRecord) -> tuple[str, ...]:
        """What a person should know of a pair, each with what can be done."""
        return self.control_tokens.findings([rendered.source, rendered.target])

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
        with self._reading() as texts:
            sources = texts.read([pair.source for pair in rendered])
        targets = self.target_ids([pair.target for pair in rendered])
        each = zip(sources, targets, where, strict=True)
        return [Example.of_pair(source.ids, target, place) for source, target, place in each]

    def beginning(self, rendered: Seq2SeqRecord, limits: DataSection) -> Seq2SeqRecord:
        """A pair with the beginning of a text that is itself too long."""
        with self._reading() as texts:
            source = texts.beginning(rendered.source, limits.max_length)
            target = replace(texts, target=True).beginning(rendered.target, limits.target_limit[1])
        return Seq2SeqRecord(source, target)

    def target_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of targets."""
        with self._reading() as reader:
            read = replace(reader, target=True).read(texts)
        end = self.stop_ids
        # mBART-25 puts the language behind the end-of-text token.
        return [tokens.ids if set(end) <= set(tokens.ids[-2:]) else [*tokens.ids, *end] for tokens in read]

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How an example exceeds `data.max_length` or `data.max_target_length`; None where it does not."""
        if len(example.input_ids) > limits.max_length:
            length = f"{least}{len(example.input_ids):,}"
            return f"has a source of {length} tokens, more than data.max_length {limits.max_length:,}"
        key, most = limits.target_limit
        if len(example.labels) > most:
            return f"has a target of {least}{len(example.labels):,} tokens, more than {key} {most:,}"
        return None

    def cut(self, rendered: Seq2SeqRecord, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The beginnings of source and target.

        The source is closed as every source is; a target that is cut does not end there, so nothing says that it does.
        """
        ids = truncate_keep_eos(example.input_ids, limits.max_length, self.tokenizer)
        return [Example.of_pair(ids, example.labels[: limits.target_limit[1]], example.where)]

    def plain_ids(self, text: str) -> list[int]:
        """The tokens of a source, which is a text behind the prefix."""
        self.control_tokens.refuse([text])
        with self._reading() as texts:
            return texts.read([self.prefix + text])[0].ids

    def marked(self, example: Example) -> str:
        """The source, and the target in ⟦ ⟧."""
        return f"{self.tokenizer.decode(example.input_ids)} ⟦{self.tokenizer.decode(example.labels)}⟧"

    @contextmanager
    def _reading(self) -> Iterator[LongTexts]:
        """What reads texts, the tokenizer set to the languages for as long as it is used."""
        tokenizer: Any = self.tokenizer
        knows = self.knows_languages
        before = (tokenizer.src_lang, tokenizer.tgt_lang) if knows else ()
        if knows:
            tokenizer.src_lang, tokenizer.tgt_lang = self.source_lang, self.target_lang
        try:
            yield LongTexts(tokenizer, literal=self.control_tokens.as_text)
        finally:
            if before:
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
    message = f"{code!r} is none of the {len(codes)} languages of the tokenizer"
    if code is None:
        message = "is not set, and the tokenizer begins every text with the code of its language"
    # Rows say `en` where tokenizers say `en_XX` and `eng_Latn`.
    longer = [each for each in sorted(codes) if code and each.startswith(code)][:3]
    near = longer or difflib.get_close_matches(code or "", codes, n=3, cutoff=0.4) or sorted(codes)[:5]
    return DataError(message, key=key, remedy=f"Codes look like {', '.join(near)}.")


@dataclass(frozen=True, eq=False)
class ClassificationRenderer(RowRenderer):
    """The one way from labelled texts to tokens, for one tokenizer and one list of classes.

    Attributes:
        pairs: Some training rows have two texts; None where that is not known.
        cut_to: The tokens that longer rows are cut to in training; None where they are left out or refused.
    """

    pairs: bool | None = None
    cut_to: int | None = None

    @classmethod
    def to_train(
        cls, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...], *, pairs: bool
    ) -> ClassificationRenderer:
        """The renderer for a tokenizer and the classes that are to be learned.

        Raises:
            DataError: There are fewer than two classes, or names that stand twice.
        """
        if twice := sorted({name for name in labels if labels.count(name) > 1}):
            raise DataError(f"{', '.join(twice)} stands twice", key="data.labels")
        if len(labels) < 2:
            found = f"only the class {labels[0]!r}" if labels else "no class"
            raise DataError(f"the training rows have {found}, and there is nothing to tell apart", key="data.train")
        renderer = cls(tokenizer, labels=labels, pairs=pairs)
        return replace(renderer, notes=(TOGETHER,)) if pairs and renderer.runs_together else renderer

    @property
    def runs_together(self) -> bool:
        """Whether the tokenizer puts nothing between the two texts of a pair, as those of most decoders do."""
        ((ids, types),) = self.text_ids([("a", "b")])
        return not set(ids[1:-1]).intersection(self.tokenizer.all_special_ids) and len(set(types or [0])) == 1

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights: the classes in their order, and what is read of texts."""
        cut = {} if self.cut_to is None else {"cut_to": self.cut_to}
        return {"labels": list(self.labels), "pairs": self.pairs, **cut, **self.control_tokens.recorded}

    def findings(self, rendered: ClassificationRecord) -> tuple[str, ...]:
        """What a person should know of a labelled text, each with what can be done."""
        return self.findings_in(rendered.text, rendered.second)

    def findings_in(self, text: str, second: str | None) -> tuple[str, ...]:
        """What a person should know of a text, or a pair, that is to be classified: it is not as training rows are."""
        unlike = () if self.pairs in (None, second is not None) else (NO_PAIR if self.pairs else UNLEARNED_PAIR,)
        return (*unlike, *self.control_tokens.findings([text, second or ""]))

    def render(self, record: Record) -> ClassificationRecord:
        """The record with its class as a number.

        Raises:
            DataError: It is a class that there is not, or has a control token, and the config refuses these.
        """
        assert isinstance(record, ClassificationRecord), "the task gives labelled texts"
        self.control_tokens.refuse([record.text, record.second or ""])
        return replace(record, label=class_number(record.label, self.labels))

    def examples(self, rendered: Sequence[ClassificationRecord], where: Sequence[str]) -> list[Example]:
        """Texts as the tokenizer reads them by itself, with the number of their class."""
        read = self.text_ids([(row.text, row.second) for row in rendered])
        each = zip(rendered, where, read, strict=True)
        return [Example.of_class(ids, int(row.label), place, types) for row, place, (ids, types) in each]

    def beginning(self, rendered: ClassificationRecord, limits: DataSection) -> ClassificationRecord:
        """The row with the beginning of each text that is itself too long."""
        text, second = self.beginnings(rendered.text, rendered.second, limits.max_length)
        return ClassificationRecord(text, second, rendered.label)

    def beginnings(self, text: str, second: str | None, most: int) -> tuple[str, str | None]:
        """Texts of which long ones are beginnings, and which give the same tokens where they are cut to `most`.

        Raises:
            ManyTokensError: A text cannot be cut, and is certain to have more tokens.
            DataError: A text is too long to be read whole, and cannot be cut.
        """
        if self.tokenizer.truncation_side != "right":  # the ends of texts are kept
            return text, second
        texts = LongTexts(self.tokenizer, special=False, literal=self.control_tokens.as_text)
        first = texts.beginning(text, most)
        if second is None:
            return first, None
        other = texts.beginning(second, most)
        if len(first) < len(text) and len(other) < len(second):  # which is longer decides which keeps an odd token

            def count(read: str) -> int:
                return len(texts.read([read])[0].ids)

            if count(text) > count(second):
                first = texts.beginning(text, max(most, count(other)))
            else:
                other = texts.beginning(second, max(most, count(first) - 1))
        return first, other

    def text_ids(
        self, texts: Sequence[tuple[str, str | None]], most: int | None = None
    ) -> list[tuple[list[int], list[int] | None]]:
        """The tokens of texts, or of pairs of texts, and their types where the model tells two texts apart.

        Args:
            texts: Each a text and the second one, or None.
            most: Cut to this many tokens, the longer of two texts first; None cuts nothing.

        Raises:
            DataError: A text is too long to be read.
        """
        options: dict[str, Any] = {} if most is None else {"truncation": "longest_first", "max_length": most}
        options["split_special_tokens"] = self.control_tokens.as_text
        found: dict[int, tuple[list[int], list[int] | None]] = {}
        for paired in (False, True):
            chosen = [index for index, (_, second) in enumerate(texts) if (second is not None) is paired]
            for start, stop in calls([len(texts[index][0]) + len(texts[index][1] or "") for index in chosen]):
                columns = [[texts[index][part] or "" for index in chosen[start:stop]] for part in range(1 + paired)]
                require_readable(columns)
                read: Any = self.tokenizer(*columns, verbose=False, **options)
                types = read.get("token_type_ids") or [None] * (stop - start)
                found |= dict(zip(chosen[start:stop], zip(read["input_ids"], types, strict=True), strict=True))
        return [found[index] for index in range(len(texts))]

    def cut(self, rendered: ClassificationRecord, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The text cut to `data.max_length` by the tokenizer, the longer of two texts first."""
        ((ids, types),) = self.text_ids([(rendered.text, rendered.second)], limits.max_length)
        return [Example.of_class(ids, example.labels[0], example.where, types)]

    def marked(self, example: Example) -> str:
        """The text, and its class in ⟦ ⟧."""
        return f"{self.tokenizer.decode(example.input_ids)} ⟦{self.labels[example.labels[0]]}⟧"

    def plain_ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self.text_ids([(text, None)])[0][0]

"""Texts and their classes as tokens and numbers: made here for training, evaluation and prediction alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraft.config.choices import SpecialTokensInText
from loraft.config.sections import DataSection
from loraft.errors import DataError
from loraft.rows.formats import ClassificationRecord, Message, Record
from loraft.rows.labels import class_number
from loraft.tokenization.examples import Example
from loraft.tokenization.long_texts import LongTexts, calls, require_readable
from loraft.tokenization.row_renderer import PlainTextRenderer

TOGETHER = (
    "the tokenizer puts nothing between the two texts of a pair: where they are to be told apart, begin text_pair "
    "with a line end or a word of yours, in training and in what is predicted"
)


@dataclass(frozen=True, eq=False)
class ClassificationRenderer(PlainTextRenderer):
    """The one way from labelled texts to tokens, for one tokenizer and one list of classes.

    Attributes:
        tokenizer: The model's.
        labels: The names of the classes; a class's number is its place.
        notes: What was decided, a sentence each.
        special_tokens_in_text: What is done with control tokens that are written in a text.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    special_tokens_in_text: SpecialTokensInText = "text"

    @classmethod
    def to_train(
        cls, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...], *, pairs: bool = False
    ) -> ClassificationRenderer:
        """The renderer for a tokenizer and the classes that are to be learned.

        Args:
            tokenizer: The model's.
            labels: The names of the classes.
            pairs: Some rows have two texts.

        Raises:
            DataError: There are fewer than two classes, or names that stand twice.
        """
        if twice := sorted({name for name in labels if labels.count(name) > 1}):
            raise DataError(f"{', '.join(twice)} stands twice", key="data.labels")
        if len(labels) < 2:
            found = f"only the class {labels[0]!r}" if labels else "no class"
            raise DataError(f"the training rows have {found}, and there is nothing to tell apart", key="data.train")
        renderer = cls(tokenizer, labels)
        return replace(renderer, notes=(TOGETHER,)) if pairs and renderer.runs_together else renderer

    @property
    def runs_together(self) -> bool:
        """Whether the tokenizer puts nothing between the two texts of a pair, as those of most decoders do."""
        ((ids, types),) = self.text_ids([("a", "b")])
        return not set(ids[1:-1]).intersection(self.tokenizer.all_special_ids) and len(set(types or [0])) == 1

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """None: no answer is generated."""
        return ()

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights: the names of the classes in their order."""
        return {"labels": list(self.labels), **self.control_tokens.recorded}

    def findings(self, rendered: ClassificationRecord) -> tuple[str, ...]:
        """What a person should know of a labelled text, each with what can be done."""
        return self.control_tokens.findings(_texts(rendered))

    def render(self, record: Record) -> ClassificationRecord:
        """The record with its class as a number.

        Raises:
            DataError: It is a class that there is not, or has a control token, and the config refuses these.
        """
        assert isinstance(record, ClassificationRecord), "the task gives labelled texts"
        self.control_tokens.refuse(_texts(record))
        return ClassificationRecord(record.text, record.second, class_number(record.label, self.labels))

    def examples(self, rendered: Sequence[ClassificationRecord], where: Sequence[str]) -> list[Example]:
        """Texts as the tokenizer reads them by itself, with the number of their class."""
        read = self.text_ids([(row.text, row.second) for row in rendered])
        each = zip(rendered, where, read, strict=True)
        return [Example.of_class(ids, int(row.label), place, types) for row, place, (ids, types) in each]

    def beginning(self, rendered: ClassificationRecord, limits: DataSection) -> ClassificationRecord:
        """The row with the beginning of each text that is itself too long; where none is that long, the row."""
        text, second = self.beginnings(rendered.text, rendered.second, limits.max_length)
        whole = (text, second) == (rendered.text, rendered.second)
        return rendered if whole else replace(rendered, text=text, second=second)

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

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How an example exceeds `data.max_length`; None where it does not."""
        if len(example.input_ids) <= limits.max_length:
            return None
        return f"has {least}{len(example.input_ids):,} tokens, more than data.max_length {limits.max_length:,}"

    def cut(self, rendered: ClassificationRecord, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The text cut to `data.max_length` by the tokenizer, the longer of two texts first."""
        ((ids, types),) = self.text_ids([(rendered.text, rendered.second)], limits.max_length)
        return [Example.of_class(ids, example.labels[0], example.where, types)]

    def marked(self, example: Example) -> str:
        """The text, and its class in ⟦ ⟧."""
        return f"{self.tokenizer.decode(example.input_ids)} ⟦{self.labels[example.labels[0]]}⟧"

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a text."""
        return self.text_ids([(messages[-1].content, None)])[0][0]


def _texts(row: ClassificationRecord) -> list[str]:
    return [row.text, *([row.second] if row.second is not None else [])]

"""Two answers a row, a better and a worse one, or one that a label calls good or bad: each rendered as any is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from loraft.config.sections import DataSection
from loraft.errors import DataError
from loraft.rows.formats import PreferencePair, Record, UnpairedAnswer
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.examples import Example, RowRenderer
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

ALIKE = "both answers are the same: nothing is learned of which is better"
MIXED = "pairs of answers and answers that stand alone are learned by different losses"
APART = "Train the one kind or the other."


@dataclass(frozen=True)
class RenderedAnswers:
    """Answers behind their prompt, each by itself.

    Attributes:
        texts: A better and a worse one, or one that stands alone.
        alike: Both are the same.
        desirable: Whether one that stands alone is one to be given; None of a pair.
    """

    texts: tuple[Any, ...]
    alike: bool
    desirable: bool | None


class ComparedRenderer(RowRenderer):
    """What makes rows whose answers are compared; it stands before the class that makes those of one answer.

    Attributes:
        alone: Each row has one answer, which a label calls good or bad; otherwise it has a better and a worse one.
    """

    alone: ClassVar[bool] = False

    @property
    def one(self) -> RowRenderer:
        """What renders one answer behind its prompt, and makes prompts: the class behind this one."""
        return cast("RowRenderer", super())

    def parts(self, record: Record) -> Sequence[Record]:
        """A row is one row, whatever its answers are made of."""
        return [record]

    def render(self, record: Record) -> Any:
        """The text of each answer behind its prompt, and what of it is compared.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told; or the row is of
                the other kind.
        """
        answers, desirable = [record], None
        if isinstance(record, UnpairedAnswer):
            answers, desirable = [record.answer], record.desirable
        elif isinstance(record, PreferencePair):
            answers = [record.chosen, record.rejected]
        if (desirable is not None) is not self.alone:
            kinds = "is an answer by itself, and other rows are pairs"
            if self.alone:
                kinds = "is a pair, and other rows are answers by themselves"
            raise DataError(f"{kinds}: {MIXED}", remedy=APART)
        texts = tuple(map(self.one.render, answers))
        return RenderedAnswers(texts, texts[0] in texts[1:], desirable)

    def findings(self, rendered: Any) -> tuple[str, ...]:
        """What a person should know of a row that became tokens, each with what can be done."""
        found = [finding for each in rendered.texts for finding in self.one.findings(each)]
        return tuple(dict.fromkeys([*found, *([ALIKE] if rendered.alike else [])]))

    def examples(self, rendered: Sequence[Any], where: Sequence[str]) -> list[Example]:
        """Rendered rows as tokens and labels, not yet cut to any length.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """
        texts = [(text, place) for row, place in zip(rendered, where, strict=True) for text in row.texts]
        found = iter(self.one.examples([text for text, _ in texts], [place for _, place in texts]))
        return [_in_one([next(found) for _ in row.texts], row.desirable) for row in rendered]

    def beginning(self, rendered: Any, limits: DataSection) -> Any:
        """The row; where a text is long enough for that to matter a beginning of it that is too long by itself."""
        return replace(rendered, texts=tuple(self.one.beginning(each, limits) for each in rendered.texts))

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How the longer of its texts exceeds the limits; None where none does."""
        which, longer = max(enumerate(example.texts), key=lambda each: each[1].tokens)
        exceeds = self.one.too_long(longer, limits, least=least)
        of_source = longer.target_tokens and len(longer.input_ids) > limits.max_length
        if self.alone or of_source or not exceeds:
            return exceeds
        return f"{exceeds}, with its {('chosen', 'rejected')[which]} answer"

    def cut(self, rendered: Any, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The beginnings of its texts; no token is invented."""
        assert choice == "truncate", "the config refuses pieces of answers"
        each = zip(rendered.texts, example.texts, strict=True)
        return [_in_one([self.one.cut(*one, limits, choice)[0] for one in each], example.desirable)]

    def marked(self, example: Example) -> str:
        """Its texts, each with what is compared in ⟦ ⟧: a worse one below the better, a single one below its label."""
        texts = "\n– rejected –\n".join(map(self.one.marked, example.texts))
        return f"– {'desirable' if example.desirable else 'undesirable'} –\n{texts}" if self.alone else texts


def _in_one(texts: Sequence[Example], desirable: bool | None) -> Example:
    """The row of a pair, or of an answer that stands alone."""
    return Example.of_preference(*texts) if desirable is None else replace(texts[0], desirable=desirable)


class CausalLMPairRenderer(ComparedRenderer, CausalLMRenderer):
    """Pairs of texts that a decoder reads."""


class CausalLMUnpairedRenderer(CausalLMPairRenderer):
    """Texts with one answer that a decoder reads."""

    alone = True


class Seq2SeqPairRenderer(ComparedRenderer, Seq2SeqRenderer):
    """Sources, each with two targets."""


class Seq2SeqUnpairedRenderer(Seq2SeqPairRenderer):
    """Sources, each with one target."""

    alone = True

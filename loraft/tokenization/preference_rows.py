"""Two answers a row, a better and a worse one, or one that a label calls good or bad: each rendered as any is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import is_
from typing import Any, cast

from loraft.config.sections import DataSection
from loraft.errors import DataError
from loraft.rows.formats import PreferencePair, Record, UnpairedAnswer
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.examples import Example, RowRenderer
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

ALIKE = "both answers are the same: nothing is learned of which is better"
MIXED = "pairs of answers and answers that stand alone are learned by different losses"
APART = "Train the one kind or the other."


class ComparedRenderer(RowRenderer):
    """What makes rows whose answers are compared; it stands before the class that makes those of one answer."""

    @property
    def one(self) -> RowRenderer:
        """What renders one answer behind its prompt, and makes prompts: the class behind this one."""
        return cast("RowRenderer", super())

    def parts(self, record: Record) -> Sequence[Record]:
        """A row is one row, whatever its answers are made of."""
        return [record]


@dataclass(frozen=True)
class RenderedPair:
    """A better and a worse answer, each behind its prompt; `alike` where they are the same."""

    both: tuple[Any, ...]
    alike: bool


class PairRenderer(ComparedRenderer):
    """What makes pairs of answers, of which one is the better."""

    def render(self, record: Record) -> Any:
        """The two texts of a pair, and what of each is compared.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told.
        """
        if not isinstance(record, PreferencePair):
            raise DataError(f"is an answer by itself, and other rows are pairs: {MIXED}", remedy=APART)
        chosen, rejected = self.one.render(record.chosen), self.one.render(record.rejected)
        return RenderedPair((chosen, rejected), chosen == rejected)

    def findings(self, rendered: Any) -> tuple[str, ...]:
        """What a person should know of a pair that became tokens, each with what can be done."""
        found = [finding for each in rendered.both for finding in self.one.findings(each)]
        return tuple(dict.fromkeys([*found, *([ALIKE] if rendered.alike else [])]))

    def examples(self, rendered: Sequence[Any], where: Sequence[str]) -> list[Example]:
        """Rendered pairs as tokens and labels, not yet cut to any length.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """
        texts = [text for pair in rendered for text in pair.both]
        found = self.one.examples(texts, [place for place in where for _ in range(2)])
        return [Example.of_preference(*each) for each in zip(found[::2], found[1::2], strict=True)]

    def beginning(self, rendered: Any, limits: DataSection) -> Any:
        """The pair; where a text is long enough for that to matter a beginning of it that is too long by itself."""
        both = tuple(self.one.beginning(each, limits) for each in rendered.both)
        return rendered if all(map(is_, both, rendered.both)) else replace(rendered, both=both)

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How the longer of its texts exceeds the limits; None where neither does."""
        which, longer = max(enumerate(example.texts), key=lambda each: each[1].tokens)
        exceeds = self.one.too_long(longer, limits, least=least)
        of_source = longer.target_tokens and len(longer.input_ids) > limits.max_length
        return exceeds if of_source or not exceeds else f"{exceeds}, with its {('chosen', 'rejected')[which]} answer"

    def cut(self, rendered: Any, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The beginnings of both texts; no token is invented."""
        assert choice == "truncate", "the config refuses pieces of pairs"
        both = zip(rendered.both, example.texts, strict=True)
        chosen, rejected = (self.one.cut(each, text, limits, choice)[0] for each, text in both)
        return [Example.of_preference(chosen, rejected)]

    def marked(self, example: Example) -> str:
        """Both texts, each with what is compared in ⟦ ⟧, the worse one below."""
        return "\n– rejected –\n".join(map(self.one.marked, example.texts))


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer behind its prompt, and whether it is one to be given."""

    row: Any
    desirable: bool


class UnpairedRenderer(ComparedRenderer):
    """What makes answers that a label calls good or bad."""

    def render(self, record: Record) -> Any:
        """The text of an answer behind its prompt, and what of it counts.

        Raises:
            DataError: The template cannot render it, or renders it so that the answer cannot be told; or it is a pair.
        """
        if not isinstance(record, UnpairedAnswer):
            raise DataError(f"is a pair, and other rows are answers by themselves: {MIXED}", remedy=APART)
        return RenderedAnswer(self.one.render(record.answer), record.desirable)

    def findings(self, rendered: Any) -> tuple[str, ...]:
        """What a person should know of an answer that became tokens, each with what can be done."""
        return self.one.findings(rendered.row)

    def examples(self, rendered: Sequence[Any], where: Sequence[str]) -> list[Example]:
        """Rendered answers as tokens and labels, not yet cut to any length.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """
        found = self.one.examples([each.row for each in rendered], where)
        return [replace(text, desirable=each.desirable) for text, each in zip(found, rendered, strict=True)]

    def beginning(self, rendered: Any, limits: DataSection) -> Any:
        """The answer; where its text is long enough for that to matter a beginning that is too long by itself."""
        row = self.one.beginning(rendered.row, limits)
        return rendered if row is rendered.row else replace(rendered, row=row)

    def cut(self, rendered: Any, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The beginning of the text; no token is invented."""
        cut = self.one.cut(rendered.row, example, limits, choice)
        return [replace(each, desirable=example.desirable) for each in cut]

    def marked(self, example: Example) -> str:
        """The text with what counts in ⟦ ⟧, below its label."""
        return f"– {'desirable' if example.desirable else 'undesirable'} –\n{self.one.marked(example)}"


class CausalLMPairRenderer(PairRenderer, CausalLMRenderer):
    """Pairs of texts that a decoder reads."""


class CausalLMUnpairedRenderer(UnpairedRenderer, CausalLMRenderer):
    """Texts with one answer that a decoder reads."""


class Seq2SeqPairRenderer(PairRenderer, Seq2SeqRenderer):
    """Sources, each with two targets."""


class Seq2SeqUnpairedRenderer(UnpairedRenderer, Seq2SeqRenderer):
    """Sources, each with one target."""

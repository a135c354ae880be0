"""Two texts a row, a better and a worse one, or one that a label calls good or bad: rendered as any text is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loraft.config.sections import DataSection
from loraft.errors import DataError
from loraft.rows.formats import PreferencePair, Record, UnpairedAnswer
from loraft.tokenization.causal_lm_rows import CausalLMRenderer, RenderedRow
from loraft.tokenization.examples import Example

ALIKE = "both answers are the same: nothing is learned of which is better"
MIXED = "pairs of answers and answers that stand alone are learned by different losses"
APART = "Train the one kind or the other."


@dataclass(frozen=True)
class RenderedPair:
    """A better and a worse text; `alike` where they are the same."""

    chosen: RenderedRow
    rejected: RenderedRow
    alike: bool = False


@dataclass(frozen=True, eq=False)
class PreferenceRenderer(CausalLMRenderer):
    """What makes pairs of texts of which the answers are compared; prompts are made as for any decoder."""

    def parts(self, record: Record) -> Sequence[Record]:
        """A pair is one row."""
        return [record]

    def render(self, record: Record) -> Any:
        """The two texts of a pair, and which characters of each are compared.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told.
        """
        if not isinstance(record, PreferencePair):
            raise DataError(f"is an answer by itself, and other rows are pairs: {MIXED}", remedy=APART)
        chosen, rejected = super().render(record.chosen), super().render(record.rejected)
        return RenderedPair(chosen, rejected, chosen.source.text == rejected.source.text)

    def findings(self, rendered: Any) -> tuple[str, ...]:
        """What a person should know of a pair that became tokens, each with what can be done."""
        found = [*rendered.chosen.findings, *rendered.rejected.findings, *([ALIKE] if rendered.alike else [])]
        return tuple(dict.fromkeys(found))

    def examples(self, rendered: Sequence[Any], where: Sequence[str]) -> list[Example]:
        """Rendered pairs as tokens and labels, not yet cut to any length.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """
        texts = [text for pair in rendered for text in (pair.chosen, pair.rejected)]
        found = super().examples(texts, [place for place in where for _ in range(2)])
        return [Example.of_preference(*each) for each in zip(found[::2], found[1::2], strict=True)]

    def beginning(self, rendered: Any, limits: DataSection) -> Any:
        """The pair; where a text is long enough for that to matter a beginning of it that is too long by itself."""
        chosen, rejected = (super(PreferenceRenderer, self).beginning(each, limits) for each in _both(rendered))
        if chosen is rendered.chosen and rejected is rendered.rejected:
            return rendered
        return RenderedPair(chosen, rejected, rendered.alike)

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How the longer text exceeds the limit; None where neither does."""
        if example.longest <= limits.max_length:
            return None
        which = "chosen" if example.second == example.longest else "rejected"
        most = f"data.max_length {limits.max_length:,}"
        return f"has {least}{example.longest:,} tokens with its {which} answer, more than {most}"

    def cut(self, rendered: Any, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The beginnings of both texts; no token is invented."""
        assert choice == "truncate", "the config refuses pieces of pairs"
        most, cut = limits.max_length, Example.of_text
        texts = (cut(each.input_ids[:most], each.labels[:most], each.where) for each in example.texts)
        return [Example.of_preference(*texts)]

    def marked(self, example: Example) -> str:
        """Both texts, each with what is compared in ⟦ ⟧, the worse one below."""
        return "\n– rejected –\n".join(super(PreferenceRenderer, self).marked(each) for each in example.texts)


@dataclass(frozen=True)
class RenderedAnswer:
    """A text, and whether its answer is one to be given."""

    row: RenderedRow
    desirable: bool


@dataclass(frozen=True, eq=False)
class UnpairedRenderer(CausalLMRenderer):
    """What makes texts with an answer that a label calls good or bad; prompts are made as for any decoder."""

    def parts(self, record: Record) -> Sequence[Record]:
        """An answer is one row."""
        return [record]

    def render(self, record: Record) -> Any:
        """The text of an answer behind its prompt, and which of its characters count.

        Raises:
            DataError: The template cannot render it, or renders it so that the answer cannot be told; or it is a pair.
        """
        if not isinstance(record, UnpairedAnswer):
            raise DataError(f"is a pair, and other rows are answers by themselves: {MIXED}", remedy=APART)
        return RenderedAnswer(super().render(record.answer), record.desirable)

    def findings(self, rendered: Any) -> tuple[str, ...]:
        """What a person should know of an answer that became tokens, each with what can be done."""
        return super().findings(rendered.row)

    def examples(self, rendered: Sequence[Any], where: Sequence[str]) -> list[Example]:
        """Rendered answers as tokens and labels, not yet cut to any length.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """
        found = super().examples([each.row for each in rendered], where)
        return [replace(text, desirable=each.desirable) for text, each in zip(found, rendered, strict=True)]

    def beginning(self, rendered: Any, limits: DataSection) -> Any:
        """The answer; where its text is long enough for that to matter a beginning that is too long by itself."""
        row = super().beginning(rendered.row, limits)
        return rendered if row is rendered.row else replace(rendered, row=row)

    def cut(self, rendered: Any, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """The beginning of the text; no token is invented."""
        cut = super().cut(rendered.row, example, limits, choice)
        return [replace(each, desirable=example.desirable) for each in cut]

    def marked(self, example: Example) -> str:
        """The text with what counts in ⟦ ⟧, below its label."""
        return f"– {'desirable' if example.desirable else 'undesirable'} –\n{super().marked(example)}"


def _both(rendered: RenderedPair) -> tuple[RenderedRow, RenderedRow]:
    return rendered.chosen, rendered.rejected

"""Preferences: an encoder-decoder learns which of two answers to a source is the better one, or which are good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraft.errors import DataError
from loraft.rows.fields import Columns, Fields
from loraft.rows.formats import (
    Answer,
    Conversation,
    LanguagePair,
    PreferencePair,
    PromptCompletion,
    Record,
    Seq2SeqRecord,
    UnpairedAnswer,
)
from loraft.tasks.compared_answers import ComparedAnswers
from loraft.tasks.seq2seq_lm import Seq2SeqLM
from loraft.tokenization.examples import DatasetFacts

if TYPE_CHECKING:
    from loraft.rows.row import Row
    from loraft.tasks.kto_loss import KTOLoss
    from loraft.tasks.preference_loss import PreferenceLoss
    from loraft.tokenization.plain_text_rows import Seq2SeqRenderer


class Seq2SeqPreference(ComparedAnswers, Seq2SeqLM):
    """An encoder-decoder learns which answers to a source are better; they are targets as any."""

    name = "seq2seq_preference"
    summary = "An encoder-decoder learns which of two answers is better."
    one = Seq2SeqLM()
    only_if_asked = ()

    def record(self, row: Row, row_format: str, columns: Columns, languages: LanguagePair) -> Record:
        """The two targets that a row has, each behind its source, or the one with its label.

        Raises:
            DataError: A field is missing, empty or of the wrong type, there is a conversation of several turns, or the
                targets are of different sources; it is named with file and line.
        """
        fields = Fields(row, columns)
        asked = [name for name in ("prompt", "instruction") if fields.filled(name) is not None]
        if not asked and isinstance(fields.filled("chosen"), str):
            remedy = "Write data.columns: {prompt: THEIRS}, as in {prompt: source}."
            raise fields.wrong("prompt", "is missing: the encoder has no source to read", remedy)
        found = super().record(row, row_format, columns, languages)
        if isinstance(found, UnpairedAnswer):
            return UnpairedAnswer(_as_target(found.answer, row), found.desirable)
        assert isinstance(found, PreferencePair), "the task's own records"
        return PreferencePair(_as_target(found.chosen, row), _as_target(found.rejected, row))

    def renderer_class(self, facts: DatasetFacts) -> type[Seq2SeqRenderer]:
        """What renders both targets of a source, or one by itself, as those of any encoder-decoder."""
        from loraft.tokenization.preference_rows import Seq2SeqPairRenderer, Seq2SeqUnpairedRenderer

        return Seq2SeqUnpairedRenderer if facts.unpaired else Seq2SeqPairRenderer

    @property
    def losses(self) -> tuple[type[PreferenceLoss], type[KTOLoss]]:
        """Those of the tokens of a target."""
        from loraft.tasks.kto_loss import Seq2SeqKTOLoss
        from loraft.tasks.preference_loss import Seq2SeqPreferenceLoss

        return Seq2SeqPreferenceLoss, Seq2SeqKTOLoss


def _as_target(answer: Answer, row: Row) -> Seq2SeqRecord:
    """An answer as the target of what it answers, which an encoder-decoder reads as one text.

    Raises:
        DataError: More stands before the answer than a user's turn; it is named with file and line.
    """
    if isinstance(answer, PromptCompletion):
        return Seq2SeqRecord(answer.prompt, answer.completion)
    assert isinstance(answer, Conversation), "rows are read as text or as turns"
    roles = [turn.role for turn in answer.messages]
    besides = [*(["tools"] if answer.tools else []), *(key for turn in answer.messages for key in turn.more)]
    if roles != ["user", "assistant"] or besides:
        found = " and ".join([f"turns of {', '.join(roles)}", *dict.fromkeys(besides)])
        message = f"has {found}, and an encoder-decoder answers one text with one text"
        raise DataError(message, where=row.where, remedy="Keep the user's turn and the answer alone.")
    asked, given = answer.messages
    return Seq2SeqRecord(asked.content, given.content)

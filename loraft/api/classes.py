"""The classes of texts, told by a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraft.adapters.resolve_target import classes_of
from loraft.evaluation.open_model import RequestedModel
from loraft.events import Note, Observer, ignored, tell
from loraft.inference.classifier import Classifier
from loraft.inference.predict_file import BATCH_SIZE as TEXTS_AT_ONCE
from loraft.inference.predict_file import PredictedFile, check_output, predict_rows, read_texts
from loraft.inference.requests import AnyModel, several
from loraft.io.resources import memory_errors
from loraft.models.remote_code import as_trusted


class OpenClassifier:
    """A classifier that is loaded once and asked many times."""

    def __init__(self, classifier: Classifier) -> None:
        """Ask an open classifier."""
        self._classifier = classifier

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes in their order."""
        return self._classifier.labels

    def predict(
        self, texts: Sequence[str | tuple[str, str | None]], *, observer: Observer = ignored
    ) -> list[dict[str, float]]:
        """Tell the probability of each class for a few texts; the arguments are those of `loraft.predict`."""
        classifier = self._classifier
        pairs = [(each, None) if isinstance(each, str) else each for each in several(texts)]
        tell(observer, *classifier.about(pairs))
        tokens = classifier.tokens(pairs)
        if any(each.is_cut for each in tokens):
            observer(Note(f"the text is longer than {classifier.limit}, and was cut to them"))
        longest = max((len(each.ids) for each in tokens), default=0)
        with memory_errors(f"the device ran out of memory with {longest:,} tokens", remedy="Give a shorter text."):
            return classifier.probabilities(tokens)


@as_trusted
def predict(
    model: AnyModel, *, texts: Sequence[str | tuple[str, str | None]], observer: Observer = ignored
) -> list[dict[str, float]]:
    """Tell the probability of each class for a few texts.

    Args:
        model: The classifier; a name alone is its target.
        texts: Each a text, or the two of a pair; a text alone is one of them.
        observer: Is told what was found.

    Returns:
        For each text the probabilities by the names of the classes.

    Raises:
        InvalidInputError: The target is no classifier, or cannot be used.
        NonFiniteError: A score is not a number.
        OutOfMemoryError: The device is too small for the texts together.
    """
    return OpenClassifier(RequestedModel(model).classifier(observer)).predict(texts, observer=observer)


@as_trusted
def predict_file(
    model: AnyModel,
    *,
    texts: str | Path,
    output: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    batch_size: int = TEXTS_AT_ONCE,
    overwrite: bool = False,
    observer: Observer = ignored,
) -> PredictedFile:
    """Classify a file of texts into a file of rows with their classes.

    Args:
        model: The classifier; a name alone is its target.
        texts: The file of rows with `text`, and `text_pair` where there are two.
        output: Where each row is written with its `prediction` and `probabilities`; one that was begun is gone on with.
            A .csv file has a column for each probability.
        text_column: What `text` is called in the file, where it calls it otherwise than the rows of training did.
        pair_column: What `text_pair` is called in it.
        batch_size: How many rows at a time.
        overwrite: Begin anew, whatever `output` holds.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is classified, with every bad row.
        RunError: While running; the rows so far are in `output`.
        Interrupted: By a signal; the rows so far are in `output`.
    """
    requested, texts, output = RequestedModel(model), Path(texts), Path(output)
    given = {"text": text_column, "text_pair": pair_column}
    columns = {ours: theirs for ours, theirs in given.items() if theirs is not None}
    rows = read_texts(texts, columns, requested.learned_columns or {}, observer)
    check_output(output, rows, texts, classes_of(requested.found), overwrite=overwrite)
    classifier = requested.classifier(observer)
    tell(observer, *classifier.about((row.text, row.second) for row in rows))
    return predict_rows(classifier, rows, output, batch_size=batch_size, overwrite=overwrite, observer=observer)

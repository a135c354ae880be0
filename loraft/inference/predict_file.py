"""A file of texts classified into a file of rows with their classes; those of like length together."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from loraft.adapters.adapter_files import digests
from loraft.dataset.sampler import chunks
from loraft.dataset.source_rows import refuse_rows
from loraft.errors import DataError, Problem
from loraft.events import Note, Observer, Progress, ignored, tell
from loraft.figures import counted
from loraft.inference.classifier import Classifier
from loraft.io.atomic import write_whole
from loraft.io.checksums import sha256_of_facts
from loraft.io.jsonl import ANSWERED_BY, OUTPUT, AskedRows, check_jsonl, lost_fields, write_answers
from loraft.io.resources import memory_errors
from loraft.rows.fields import Fields
from loraft.rows.places import files_here
from loraft.rows.raw_rows import RowsRead, rows_to_answer
from loraft.rows.row import Row

ADDED = ("prediction", "probabilities")
"""What a prediction adds to its row."""
PROBABILITY = "probability_{}"
"""The column of a table that has the probability of a class."""
BATCH_SIZE = 32


@dataclass(frozen=True)
class TextRow:
    """A row, and the text or the pair of texts to classify."""

    row: Row
    text: str
    second: str | None


@dataclass(frozen=True)
class PredictedFile:
    """What was done: of the file's rows, those `held` before; of this run the texts that were cut, and classes."""

    output: Path
    rows: int
    held: int
    cut: int
    predictions: Mapping[str, int]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it."""
        done = self.rows - self.held
        return {**asdict(self), "rows_per_second": done / self.seconds if done and self.seconds else None}


def read_texts(
    path: Path, columns: Mapping[str, str], learned: Mapping[str, str], observer: Observer = ignored
) -> list[TextRow]:
    """Every row of a file of texts.

    What `text` and `text_pair` are called in it `columns` tells; where nobody says, and the file has such columns, they
    are called as in training (`learned`). Rows that are not as they must be are refused, and the first ones named.
    """
    read = rows_to_answer(path, "texts")
    tell(observer, *read.notes)
    as_learned = {ours: learned[ours] for ours in ("text", "text_pair") if learned.get(ours) in read.columns}
    columns = {**as_learned, **columns}
    _require_columns(path, read, columns)
    problems, texts = list(read.problems), []
    for row in read.rows:
        fields = Fields(row, columns)
        try:
            second = fields.text("text_pair") if "text_pair" in columns else fields.optional_text("text_pair") or None
            texts.append(TextRow(row, fields.text("text"), second))
        except DataError as error:
            problems += error.problems
        problems += lost_fields(row.where, row.values, ADDED)
    refuse_rows(problems)
    return texts


def _require_columns(path: Path, read: RowsRead, columns: Mapping[str, str]) -> None:
    """A column that no row has is one mistake, not one a row."""
    there, problems = read.columns, []
    by_small = {name.lower(): name for name in there}
    for ours, theirs in {"text": "text", **columns}.items():
        if len(read.rows) > 1 and theirs not in there:
            named_by = "text_column" if ours == "text" else "pair_column"
            message = f"there is no column {theirs!r}; the columns are {', '.join(there)}"
            remedy = f"Name the one that holds the texts: `{named_by}={by_small.get(theirs.lower(), 'NAME')!r}`."
            problems.append(Problem(message, str(path), remedy=remedy, parameter="texts"))
    if problems:
        raise DataError.several(problems)


def predict_rows(
    classifier: Classifier,
    texts: Sequence[TextRow],
    output: Path,
    *,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    observer: Observer,
) -> PredictedFile:
    """Classify every text, and write its row with what was found to `output`, or go on with it.

    Whatever ends it early, the rows so far are on disk. A .csv file is written when every row is classified, from rows
    of JSON that lie beside it until then.
    """
    asked = AskedRows([text.row.values for text in texts], ADDED, _answered_by(classifier))
    lines, total = _lines_of(output), len(texts)
    out_of_memory = f"the device ran out of memory with {batch_size} rows at a time"
    remedy = "Give a smaller `batch_size`; what is classified stays."
    begun, given, were_cut = perf_counter(), Counter[str](), list[bool]()

    def answers(window: range, first: int) -> list[tuple[str, dict[str, float]]]:
        new = _window(classifier, texts[window.start : window.stop], batch_size)[first - window.start :]
        predicted = [(max(each, key=each.__getitem__), each) for each, _ in new]
        given.update(label for label, _ in predicted)
        were_cut.extend(is_cut for _, is_cut in new)
        observer(Progress("rows classified", window.stop, total))
        return predicted

    with memory_errors(out_of_memory, remedy=remedy, where=output):
        held = write_answers(lines, asked, answers, batch_size=batch_size, overwrite=overwrite)
    if lines != output:
        _write_csv(lines, output)
    if cut := sum(were_cut):
        observer(Note(f"{counted(cut, 'text is', 'texts are')} longer than {classifier.limit}, and cut to them"))
    return PredictedFile(output, total, held, cut, dict(given.most_common()), perf_counter() - begun)


def check_output(
    output: Path, texts: Sequence[TextRow], source: Path, labels: Sequence[str], *, overwrite: bool
) -> None:
    """Refuse, before anything is loaded, a file that the classes of `texts` cannot be written to."""
    lines = _lines_of(output)
    columns = list(map(PROBABILITY.format, labels)) if lines != output else []
    refuse_rows([lost for each in texts for lost in lost_fields(each.row.where, each.row.values, columns)])
    asked = AskedRows([each.row.values for each in texts], ADDED)
    check_jsonl(lines, reads=files_here(str(source)), asked=asked, overwrite=overwrite)
    if lines != output and output.exists() and not overwrite:
        remedy = "Name another file, or give `overwrite`."
        raise DataError("is there already", where=output, parameter=OUTPUT, remedy=remedy)


def _lines_of(output: Path) -> Path:
    """Where rows are written one by one: the output itself, or beside it where that is a .csv file."""
    return output.with_name(f".{output.name}.jsonl") if output.suffix.lower() == ".csv" else output


def _write_csv(lines: Path, output: Path) -> None:
    """The rows of `lines` as a table, a column for the probability of each class; whole or not at all."""
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").split("\n")[:-1]]
    flat = [
        {key: value for key, value in row.items() if key not in ("probabilities", ANSWERED_BY)}
        | {PROBABILITY.format(label): share for label, share in row["probabilities"].items()}
        for row in rows
    ]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    for row in flat:
        nested = {key: value for key, value in row.items() if isinstance(value, dict | list | bool)}
        writer.writerow(row | {key: json.dumps(value, ensure_ascii=False) for key, value in nested.items()})
    try:
        write_whole(output, table.getvalue(), errors="backslashreplace")
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=output, parameter=OUTPUT) from error
    lines.unlink()


def _window(classifier: Classifier, texts: Sequence[TextRow], batch_size: int) -> list[tuple[dict[str, float], bool]]:
    """For each text in its order the probabilities of each class, and whether it was cut."""
    tokens = classifier.tokens([(text.text, text.second) for text in texts])
    by_length = sorted(range(len(tokens)), key=lambda place: -len(tokens[place].ids))
    found: dict[int, dict[str, float]] = {}
    for places in chunks(by_length, batch_size):
        found |= zip(places, classifier.probabilities([tokens[place] for place in places]), strict=True)
    return [(found[place], each.is_cut) for place, each in enumerate(tokens)]


def _answered_by(classifier: Classifier) -> str:
    """What tells predictions of this classifier from others: a hash over all that decides them."""
    described = {
        "adapter": digests(classifier.adapter) if classifier.adapter else None,
        "base": classifier.loaded.fingerprint,
        "dtype": str(classifier.loaded.placement.dtype),
        "labels": classifier.labels,
        "quantization": classifier.quantization.model_dump() if classifier.quantization else None,
    }
    return sha256_of_facts(described)[:16]

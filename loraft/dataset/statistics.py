"""What there is to say about the rows: counts, lengths, classes, repetitions, and what is trained. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from loraft.config.choices import RowFormat
from loraft.figures import counted, listed
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example

UNKNOWN_SHARE = 0.01
"""More unknown tokens than this are told."""
SHOWN = 10
"""So many classes are named in a sentence."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of some rows, with how many rows it is so of and the place of the first."""

    what: str
    rows: int
    first: str


@dataclass
class SourceCounts:
    """What became of the rows of one source.

    Attributes:
        bad: Rows that cannot be used and were skipped (`data.on_bad_row: skip`).
        overlength: Rows longer than `data.max_length`.
        in_part: Those of them whose tokens were not counted to the end, so that their lengths are lower bounds.
        done: What was done with those: dropped, truncated or split.
        untrained: Rows left out because no token of theirs is trained.
        kept: Rows, or pieces of split ones, that can be used.
    """

    source: str
    format: RowFormat
    read: int = 0
    bad: int = 0
    overlength: int = 0
    in_part: int = 0
    done: str = "–"
    untrained: int = 0
    kept: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Lengths:
    """The lengths of rows in tokens, before any is dropped, truncated or split.

    Attributes:
        keeps_99_percent: The `data.max_length` that 99 of 100 rows fit in.
    """

    shortest: int
    median: int
    p90: int
    keeps_99_percent: int
    longest: int


@dataclass(frozen=True)
class ClassCount:
    """The rows of one class, and its share of all rows to train on."""

    label: str
    train_rows: int
    train_share: float
    eval_rows: int


@dataclass(frozen=True)
class Repetition:
    """A row that says what an earlier training row says, each by its place."""

    row: str
    same_as: str


@dataclass(frozen=True)
class DataReport:
    """The rows of a run, in numbers.

    Attributes:
        tokens: Tokens of the rows to train on.
        trained_tokens: Those that the loss is computed on.
        length: Lengths of the training rows in tokens; of their sources where they have targets.
        max_length: The setting that they are compared with.
        samples: Three rows as the model sees them, the trained part in ⟦ ⟧.
        notes: What was found, a sentence each.
        target_length: Lengths of the targets; None where rows have none.
        classes: The rows of each class; empty where rows have none.
        unknown_tokens: Tokens to train on that stand for text which the tokenizer does not know; None where every text
            has tokens of its own.
        repeated: Training rows that repeat an earlier one.
        seen: Rows to evaluate on that stand among the training rows too.
        contradicting: Training rows with the text of an earlier one and another class.
        sampled: How many rows these numbers are of, where not all were read; None where they were.
    """

    train_rows: int | None
    eval_rows: int
    tokens: int
    trained_tokens: int
    length: Lengths
    max_length: int
    sources: Sequence[SourceCounts]
    samples: Sequence[dict[str, str]]
    notes: tuple[str, ...] = ()
    target_length: Lengths | None = None
    classes: Sequence[ClassCount] = ()
    unknown_tokens: int | None = None
    repeated: Sequence[Repetition] = ()
    seen: Sequence[Repetition] = ()
    contradicting: Sequence[Repetition] = ()
    sampled: int | None = None

    @property
    def trained_share(self) -> float:
        """The share of tokens that the loss is computed on."""
        return self.trained_tokens / self.tokens

    def as_dict(self, *, verbose: bool = False) -> dict[str, Any]:
        """The report as JSON shows it; what only some data has stands there only then.

        `verbose` names each repeated row instead of counting them alone.
        """
        values = {key: value for key, value in asdict(self).items() if key != "notes"}
        repeated, seen, contradicting = (values.pop(key) for key in ("repeated", "seen", "contradicting"))
        first = {key: values.pop(key) for key in ("train_rows", "eval_rows", "tokens", "trained_tokens")}
        first |= {"trained_share": self.trained_share, "repeated_rows": len(repeated), "eval_rows_in_train": len(seen)}
        if self.classes:  # of a text one class is learned, and no token
            del first["trained_tokens"], first["trained_share"]
            first["contradicting_rows"] = len(contradicting)
        unknown = values.pop("unknown_tokens")
        if unknown is not None:
            first |= {"unknown_tokens": unknown, "unknown_share": unknown / self.tokens}
        for key in ("target_length", "classes", "sampled"):
            if not values[key]:
                del values[key]
        if not verbose:
            return first | values
        named = {"repeated": repeated, "in_train_and_eval": seen}
        return first | values | named | ({"contradicting": contradicting} if self.classes else {})


def lengths_of(lengths: Sequence[int]) -> Lengths:
    """The quantiles of `lengths`, each the length of a real row (`method="higher"`)."""
    quantiles = np.quantile(np.asarray(lengths), [0, 0.5, 0.9, 0.99, 1], method="higher")
    return Lengths(*(int(value) for value in quantiles))


def count_classes(labels: Sequence[str], train: Sequence[Example], evaluation: Sequence[Example]) -> list[ClassCount]:
    """The rows of each of `labels`, which examples number; none where there are no labels."""
    if not labels:
        return []
    trained, held = (Counter(example.labels[0] for example in part) for part in (train, evaluation))
    return [
        ClassCount(label, trained[number], trained[number] / len(train), held[number])
        for number, label in enumerate(labels)
    ]


def unknown_tokens(examples: Sequence[Example], unknown: int) -> int:
    """How many tokens of `examples` are the one for text that the tokenizer does not know."""
    read = sum(example.input_ids.count(unknown) for example in examples)
    return read + sum(example.labels.count(unknown) for example in examples if example.target_tokens)


def findings(report: DataReport) -> Iterator[str]:
    """What a person should know of a report, a sentence each."""
    share = 0.0 if report.unknown_tokens is None else report.unknown_tokens / report.tokens
    if share > UNKNOWN_SHARE:
        yield f"{share:.1%} of the tokens stand for text that the tokenizer does not know: is it the right one?"
    if absent := [each.label for each in report.classes if not each.train_rows]:
        yield f"no training row is of the class {listed(absent, SHOWN)}"
    if report.eval_rows and (unmeasured := [each.label for each in report.classes if not each.eval_rows]):
        yield f"no row to evaluate on is of the class {listed(unmeasured, SHOWN)}: its figures will say nothing of it"
    spellings: dict[str, list[str]] = {}
    for each in report.classes:
        spellings.setdefault(each.label.casefold(), []).append(each.label)
    for alike in (names for names in spellings.values() if len(names) > 1):
        yield f"{' and '.join(alike)} are {len(alike)} classes, and differ in upper and lower case alone"
    if report.repeated:
        many = counted(len(report.repeated), "training row repeats", "training rows repeat")
        yield f"{many} an earlier one, {_first(report.repeated)}"
    if report.contradicting:
        many = counted(len(report.contradicting), "training row has", "training rows have")
        yield f"{many} the text of an earlier one and another label, {_first(report.contradicting)}"
    if report.seen:
        stand = "stands" if len(report.seen) == 1 else "stand"
        found = f"{len(report.seen)} of {counted(report.eval_rows, 'row')} to evaluate on {stand}"
        yield f"{found} among the training rows, {_first(report.seen)}: they say nothing about new rows"


def _first(repeated: Sequence[Repetition]) -> str:
    return f"the first {repeated[0].row} ({repeated[0].same_as})"


def repetitions(train: Sequence[Example], evaluation: Sequence[Example]) -> tuple[list[Repetition], list[Repetition]]:
    """Training rows that repeat an earlier one, and rows of the evaluation that stand among the training rows.

    Rows are the same where all their tokens and labels are; a row in pieces is told once, by its first repeated piece.
    """
    first: dict[bytes, str] = {}
    repeated: dict[str, str] = {}
    for example in train:
        known = first.setdefault(_digest_of_row(example), example.where)
        if known != example.where:
            repeated.setdefault(example.where, known)
    seen: dict[str, str] = {}
    for example in evaluation:
        if (digest := _digest_of_row(example)) in first:
            seen.setdefault(example.where, first[digest])
    return [Repetition(*pair) for pair in repeated.items()], [Repetition(*pair) for pair in seen.items()]


def contradictions(examples: Sequence[Example], task: Task) -> list[Repetition]:
    """Rows with the text of an earlier one and another class."""
    first: dict[bytes, Example] = {}
    found = []
    for example in examples:
        if task.class_number(example) is not None:
            said = [-1, *example.labels] if example.target_tokens else []  # of a text the answer is among its tokens
            known = first.setdefault(_digest([*example.input_ids, *said]), example)
            if task.class_number(known) != task.class_number(example):
                found.append(Repetition(example.where, known.where))
    return found


def _digest_of_row(example: Example) -> bytes:
    return _digest([*example.input_ids, -1, *example.labels, example.desirable or 0])


def _digest(numbers: Sequence[int]) -> bytes:
    return blake2b(array("q", numbers).tobytes(), digest_size=16).digest()

"""What a trained model tells beside its base, as a report holds it: plain values, and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FigureBeside:
    """A figure of base and trained model on the same rows, their difference and the ends of its 95 % interval."""

    base: float
    trained: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class AnswerBeside:
    """What base and trained model answer to one row; None of a base that has no answer."""

    row: str
    asked: str
    reference: str
    base: str | None
    trained: str


@dataclass(frozen=True)
class Forgetting:
    """The loss of base and trained model on a general text that neither was asked to learn, in nats a token."""

    base: float
    trained: float
    tokens: int


@dataclass(frozen=True)
class HardRow:
    """A row whose loss is high: of a text in nats a trained token; of a classifier with what it takes the row for."""

    row: str
    loss: float
    text: str
    label: str | None = None
    told: str | None = None


@dataclass(frozen=True)
class MovedLayer:
    """How far LoRA moved a layer: ‖ΔW‖ of its modules together, and that over ‖W‖ where the base is at hand."""

    layer: str
    norm: float
    relative: float | None


@dataclass(frozen=True)
class ModelFindings:
    """What the model tells.

    Attributes:
        rows: What the held-out rows are, in words; None where there are none.
        rows_read: How many of them were read.
        base: What the trained model is compared with; None where there is nothing.
        figures: Base beside trained on them, by figure.
        answers: Some of their answers, before and after.
        forgotten: None where the model is not one that continues texts.
        hard_held_out: The held-out rows with the highest loss, the highest first.
        hard_learned: The training rows with the highest loss.
        learned_read: How many of the training rows were read for that.
        learned_rows: How many there are.
        moved: The layers that LoRA moved most.
        notes: What was left out, and why, a sentence each.
    """

    rows: str | None
    rows_read: int
    base: str | None
    figures: Mapping[str, FigureBeside]
    answers: Sequence[AnswerBeside]
    forgotten: Forgetting | None
    hard_held_out: Sequence[HardRow]
    hard_learned: Sequence[HardRow]
    learned_read: int
    learned_rows: int
    moved: Sequence[MovedLayer]
    notes: tuple[str, ...]

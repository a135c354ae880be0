"""What came of a recurrent baseline: figures, gradients and samples of each network, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from loraft.baselines.compared_model import Writing
from loraft.baselines.gradient_reach import GradientReach
from loraft.baselines.train_recurrent import RecurrentTraining
from loraft.evaluation.bootstrap import BOOTSTRAP, PairedDifference


@dataclass(frozen=True)
class PaddedRow:
    """The shortest of the held-out rows, read alone and beside the longest, which pads it: its loss, in nats.

    Attributes:
        padding: The tokens of padding.
    """

    padding: int
    loss_alone: float
    loss_padded: float


@dataclass(frozen=True)
class ComparedNetwork:
    """A network's figures.

    Attributes:
        tokens_per_second: Tokens read of the held-out rows, a batch at a time.
        row_seconds: What the class of a row takes, asked alone; None where it writes.
        padded: What padding does to a row: nothing, but for rounding.
        writing: What it takes to write; None where it tells classes.
        figures: The quality on the held-out rows.
    """

    name: str
    parameters: int
    trained_parameters: int
    tokens_per_second: float
    row_seconds: float | None
    padded: PaddedRow
    writing: Writing | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class SampleAnswers:
    """A held-out row, what answers it, and what each network said."""

    row: str
    asked: object
    reference: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class MeasuredReach:
    """The gradients by distance: of how many texts, of how many tokens each; of no network where rows are too short."""

    texts: int
    length: int
    networks: tuple[GradientReach, ...] = ()


@dataclass(frozen=True)
class BaselineReport:
    """Recurrent networks beside what was fine-tuned.

    Attributes:
        compared_with: The run, or the base where there is none yet; None where nothing stands beside.
        networks: What was fine-tuned first, where it is there.
        differences: By the cell and the figure: what stands beside minus the recurrent network, with its interval.
        findings: What was found, a sentence each.
    """

    task: str
    train_rows: int
    rows: int
    compared_with: str | None
    networks: tuple[ComparedNetwork, ...]
    training: tuple[RecurrentTraining, ...]
    differences: Mapping[str, Mapping[str, PairedDifference]]
    gradient: MeasuredReach
    samples: tuple[SampleAnswers, ...]
    findings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        return {**asdict(self), **BOOTSTRAP}


def findings_of(report: BaselineReport) -> Iterator[str]:
    """What was found, whatever it is."""
    for cell, differences in report.differences.items():
        beside = report.networks[0].name
        for figure, found in differences.items():
            if figure == "loss":
                side = "lower" if found.high < 0 else "higher" if found.low > 0 else None
                yield (
                    f"the loss of the {beside} model is {side} than that of the {cell}"
                    if side
                    else f"these rows do not tell whether the loss of the {beside} model or of the {cell} is lower"
                )
    for reach in report.gradient.networks:
        last, change = reach.relative[-1], f"{-reach.orders:+.1f} orders of magnitude, × {reach.factor:.3f} a token"
        yield (
            f"{reach.name}: {len(reach.relative)} tokens back the gradient is {last:.2g} of the last token's; "
            f"by the line through all distances {change}"
        )
    if not report.gradient.networks:
        yield "the held-out rows are too short to tell how far gradients reach"

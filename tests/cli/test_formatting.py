"""Numbers as a person reads them."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraft.cli.console import print_json
from loraft.cli.text_tables import (
    as_bytes,
    as_count,
    as_duration,
    as_figure,
    as_measure,
    as_rate,
    as_share,
    as_span,
    shown,
)
from loraft.evaluation.metrics import METRICS
from loraft.tasks import METRIC_FACTS
from loraft.tasks.kto_loss import KTOLoss
from loraft.tasks.preference_loss import PreferenceLoss
from loraft.tasks.seq_cls import LABEL_METRICS
from loraft.tasks.task import TEXT_LOSS, MetricFacts


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (269_060_000, "269 MB"),
        (999_600_000, "1.0 GB"),
        (2_100_000_000, "2.1 GB"),
        (139_000_000_000, "139 GB"),
        (7_500_000_000_000_000_000, "7500 PB"),
    ],
)
def test_bytes(number: int, text: str) -> None:
    assert as_bytes(number) == text


@given(st.integers(0, 10**17))
def test_bytes_are_short(number: int) -> None:
    assert len(as_bytes(number)) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0.4, "0s"), (59.6, "1m00s"), (252, "4m12s"), (11_100, "3h05m"), (187_200, "2d04h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert as_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(4_884_480, "4,884,480"), (2.5, "2.5"), (3.0, "3"), (float("inf"), "inf")]
)
def test_counts(number: float, text: str) -> None:
    assert as_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0.0000"), (1.23456, "1.2346"), (0.00012, "1.2e-04"), (12345.6, "12,345.6"), (float("nan"), "nan")],
)
def test_measures(number: float, text: str) -> None:
    assert as_measure(number) == text


@pytest.mark.parametrize(("rate", "text"), [(2e-4, "2.00e-4"), (1.9e-10, "1.90e-10"), (0, "0")])
def test_rates(rate: float, text: str) -> None:
    assert as_rate(rate) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(35, 1000, "3.50 %"), (1, 10_000, "0.010 %"), (1, 2, "50.0 %"), (0, 0, "0.00 %")]
)
def test_shares(part: int, whole: int, text: str) -> None:
    assert as_share(part, whole) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 0.5, "0.5000"),
        ("perplexity", 1234.5, "1,234.5"),
        ("mcc", -0.25, "-0.2500"),
        ("bleu", 31.415, "31.41"),
        ("chrf", 50.0, "50.00"),
        ("rougeL", 0.5, "50.00 %"),
        ("accuracy", 0.975, "97.50 %"),
        ("loss", math.inf, "–"),
    ],
)
def test_figures_are_written_as_their_metrics_say(name: str, value: float, text: str) -> None:
    assert as_figure(name, value) == text


def test_a_difference_has_its_sign() -> None:
    assert as_figure("accuracy", 0.01, signed=True) == "+1.00 %"
    assert as_figure("loss", -0.01, signed=True) == "-0.0100"


def test_a_new_metric_is_written_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraft.tasks.METRIC_FACTS", {"odds": MetricFacts("number")})
    assert as_figure("odds", 3.0) == "3.0000"
    assert shown("best_eval_odds", 3.0) == "3.0000"


def test_what_is_computed_is_what_is_known() -> None:
    """Every figure of a task is computed, and every one that is computed is a task's."""
    of_pairs = PreferenceLoss.figures(torch.zeros(2, 1))
    of_labels = KTOLoss.figures(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert {*METRICS, *LABEL_METRICS, *TEXT_LOSS, *of_pairs, *of_labels} == set(METRIC_FACTS)


@pytest.mark.parametrize(
    ("indices", "text"),
    [([], ""), ([3], "3"), (range(30), "0–29"), ([0, 3, 4, 5], "0, 3–5"), ([1, 2, 7], "1–2, 7")],
)
def test_spans(indices: list[int], text: str) -> None:
    assert as_span(indices) == text


def test_json_has_what_no_encoding_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's column may hold half a character, as JSON files do."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace")  # as the command line opens it
    monkeypatch.setattr("sys.stdout", out)
    print_json({"cut \ud83d": "by \ud83d"})
    out.seek(0)
    assert json.loads(out.read()) == {"cut ?": "by ?"}


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": math.inf, "rows": [{"loss": math.nan}, {"loss": 0.5}], "run_folder": Path("runs/a")})
    document = json.loads(capsys.readouterr().out)
    assert document == {"loss": None, "rows": [{"loss": None}, {"loss": 0.5}], "run_folder": "runs/a"}

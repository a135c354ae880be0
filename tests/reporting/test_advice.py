"""Each rule fires where its threshold is passed, and not before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraft.reporting.advice import RULES, advice, over_fitted_after
from loraft.reporting.model_findings import ModelFindings
from tests.reporting.written_run import FALLING, FLAT, findings_with, records_of

GUIDE = Path(__file__).parents[2] / "docs/guides/report.md"
ROSE = {10: 1.0, 20: 1.03}
FELL_TO = [2.0] * 8 + [1.9] * 12
CASES: list[tuple[str, str, dict[str, Any], ModelFindings | None]] = [
    ("diverged", "training.learning_rate", {"losses": [*FALLING[:16], 4.0, 4.0, 4.0, 4.0]}, None),
    ("over_fitted", "training.num_train_epochs", {"losses": FLAT, "evaluations": ROSE}, None),
    ("over_fitted", "training.learning_rate", {"losses": FLAT, "evaluations": {5: 1.0, 20: 1.5}}, None),
    ("over_fitted", "training.max_steps", {"losses": FLAT, "evaluations": ROSE, "max_steps": 20}, None),
    (
        "over_fitted", "training.early_stopping_patience",
        {"losses": FLAT, "evaluations": {19: 1.0, 20: 1.1}}, None,
    ),
    ("no_better_than_base", "training.learning_rate", {"losses": FLAT}, findings_with((-0.1, 0.1))),
    ("no_better_than_base", "data.train", {"losses": FELL_TO}, findings_with((-0.1, 0.1))),
    ("forgot", "training.learning_rate", {"losses": FLAT}, findings_with((-0.4, -0.2), (2.0, 2.11))),
    ("clipped", "training.learning_rate", {"losses": FLAT, "norm": 1.5}, None),
    ("falling", "training.num_train_epochs", {"losses": FALLING}, None),
    ("falling", "training.max_steps", {"losses": FALLING, "max_steps": 20, "evaluations": {10: 2.0, 20: 1.5}}, None),
    ("none_held_out", "data.eval", {"losses": FLAT, "held_out": False}, None),
]  # fmt: skip
QUIET: list[tuple[dict[str, Any], ModelFindings | None]] = [
    ({"losses": FLAT}, None),
    ({"losses": FLAT, "evaluations": {10: 1.0, 20: 1.01}}, findings_with((-0.4, -0.2), (2.0, 2.09))),
    ({"losses": FALLING, "finished": False}, None),
    ({"losses": [each * 1e-4 for each in FALLING]}, None),  # it falls, and is next to nothing
    ({"losses": FALLING, "evaluations": {10: 1.0, 20: 1.01}, "norm": 1.5}, None),  # clipped, and it falls on
    ({"losses": FALLING[:9], "norm": 1.5}, None),  # too short to be judged
    ({"losses": FLAT, "norm": 9.0, "max_grad_norm": None}, None),
]


@pytest.mark.parametrize(("rule", "key", "given", "findings"), CASES)
def test_a_rule_names_its_key(
    tmp_path: Path, rule: str, key: str, given: dict[str, Any], findings: ModelFindings | None
) -> None:
    found = advice(records_of(tmp_path, **given), findings)
    assert [(each.rule, each.key) for each in found] == [(rule, key)]
    assert found[0].change
    assert found[0].reason


@pytest.mark.parametrize(("given", "findings"), QUIET)
def test_where_no_threshold_is_passed_nothing_is_advised(
    tmp_path: Path, given: dict[str, Any], findings: ModelFindings | None
) -> None:
    assert advice(records_of(tmp_path, **given), findings) == []


def test_every_rule_is_tried_and_stands_in_the_guide() -> None:
    assert {rule.__name__.removeprefix("_") for rule in RULES} == {rule for rule, *_ in CASES}
    guide = GUIDE.read_text(encoding="utf-8")
    for rule, key, *_ in CASES:
        assert f"`{rule}`" in guide
        assert key in guide


def test_the_most_pressing_comes_first(tmp_path: Path) -> None:
    records = records_of(tmp_path, FLAT, norm=1.5, evaluations=ROSE)
    found = advice(records, findings_with((0.1, 0.2), (2.0, 3.0)))
    assert [each.rule for each in found] == ["over_fitted", "forgot", "clipped"]


def test_it_over_fitted_after_the_step_with_the_lowest_loss(tmp_path: Path) -> None:
    assert over_fitted_after(records_of(tmp_path / "a", FLAT, {5: 1.2, 10: 1.0, 20: 1.03})) == 10
    assert over_fitted_after(records_of(tmp_path / "b", FLAT, {5: 1.2, 10: 1.0, 20: 1.02})) is None
    assert over_fitted_after(records_of(tmp_path / "c", FLAT)) is None
    next_to_nothing = {5: 0.012, 10: 0.010, 20: 0.014}
    assert over_fitted_after(records_of(tmp_path / "d", FLAT, next_to_nothing)) is None


def test_the_learning_rate_that_is_advised_is_the_one_that_was_used(tmp_path: Path) -> None:
    (found,) = advice(records_of(tmp_path, FLAT, {5: 1.0, 20: 1.5}, learning_rate="auto"))
    assert found.change.startswith("5.0e-4")

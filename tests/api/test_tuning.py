"""Trials of rates, ranks and lengths: which are made, which is the best, and that a stop costs none of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loraft.api import tuning
from loraft.api.tuning import tune
from loraft.config.schema import RunConfig
from loraft.errors import ConfigError, Interrupted, NonFiniteError, RunError, RunFolderError
from loraft.training.run_events import StepLogged
from tests.training.building import tiny_config

Ran = list[tuple[float, int, int]]
STEP = StepLogged(1, 6, 0.1, 1.0, 1.0, 1e-3, 10, 100.0, 1, 0.0)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = tiny_config(tmp_path, data__eval=0.2, training__output_dir=str(tmp_path / "tuned"))
    by_accuracy = config.training.model_copy(update={"metric_for_best_model": "accuracy"})
    return config.model_copy(update={"training": by_accuracy})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Runs that take no time: the loss is least at a rate of 0.03 and rank 16, and falls with the steps."""
    made: Ran = []
    monkeypatch.setattr(tuning, "median", lambda _: 0.05)

    def train(config: RunConfig, *, observer: Any, **_: object) -> SimpleNamespace:
        rate, rank, steps = config.training.learning_rate, config.lora.r, config.training.max_steps
        assert rate != "auto"
        assert config.training.metric_for_best_model == "loss", "by which trials are compared"
        Path(str(config.training.output_dir)).mkdir(parents=True)
        if steps == tuning.PROBED:
            observer(STEP)
            return SimpleNamespace(best_eval_loss=1.0, best_step=steps)
        assert steps is not None
        made.append((rate, rank, steps))
        if rate == 0.1:
            raise NonFiniteError("the loss is NaN")
        return SimpleNamespace(best_eval_loss=abs(rate - 0.03) + 1 / rank + 1 / steps, best_step=steps - 1)

    monkeypatch.setattr(tuning, "train", train)
    return made


def test_the_better_half_is_trained_for_twice_as_long(config: RunConfig, ran: Ran) -> None:
    """8 candidates, rungs of equal cost: 3 · 8 trials of s steps of 0.05 s fit into the budget."""
    done = tune(config, budget=24 * 20 * 0.05 + 1)
    shortest = ran[0][2]
    assert shortest in (20, 21)
    assert [steps for _, _, steps in ran] == [shortest] * 8 + [2 * shortest] * 4 + [4 * shortest] * 2
    assert {rank for _, rank, steps in ran if steps == 2 * shortest} == {4, 16}
    assert done.best.changes == {"training.learning_rate": 0.03, "lora.r": 16, "lora.alpha": 32}
    assert done.values == {**done.best.changes, "training.max_steps": 4 * shortest - 1}
    failed = [trial for trial in done.trials if trial.failed]
    assert {trial.changes["training.learning_rate"] for trial in failed} == {0.1}
    assert "the loss is NaN" in str(failed[0].failed)


def test_a_stop_costs_no_trial(config: RunConfig, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, train = 24 * 20 * 0.05 + 1, tuning.train

    def stopped(config: RunConfig, **given: Any) -> object:
        if len(ran) == 9:
            raise Interrupted("saved", signal_number=15)
        return train(config, **given)

    monkeypatch.setattr(tuning, "train", stopped)
    with pytest.raises(Interrupted, match="9 trials are made"):
        tune(config, budget=whole)
    monkeypatch.setattr(tuning, "train", train)
    done = tune(config, budget=whole)
    assert (len(ran), len(done.trials)) == (14, 14)
    assert tune(config, budget=whole) == done
    assert len(ran) == 14
    with pytest.raises(RunFolderError, match="holds a tuning of another config or another budget"):
        tune(config, budget=2 * whole)
    tune(config, budget=2 * whole, overwrite=True)
    assert len(ran) == 28


def test_what_cannot_be_tried_is_refused(config: RunConfig, ran: Ran, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"14 trials of at least 8 steps take longer") as small:
        tune(config, budget=2)
    assert small.value.problems[0].remedy == "Give at least 1m."
    none = config.model_copy(update={"data": config.data.model_copy(update={"eval": None})})
    with pytest.raises(ConfigError, match=r"data.eval: trials are compared on rows held out"):
        tune(none, budget=60)
    (tmp_path / "tuned").mkdir(exist_ok=True)
    (tmp_path / "tuned/tune.json").write_text("{")
    with pytest.raises(RunFolderError, match="is damaged: which trials were made is not known"):
        tune(config, budget=60)
    (tmp_path / "tuned/tune.json").unlink()
    (tmp_path / "tuned/mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="holds something else than a tuning"):
            tune(config, budget=60, overwrite=overwrite)
    assert (tmp_path / "tuned/mine.txt").read_text() == "mine"
    file = config.training.model_copy(update={"output_dir": str(tmp_path / "tuned/mine.txt")})
    with pytest.raises(RunFolderError, match="holds something else than a tuning"):
        tune(config.model_copy(update={"training": file}), budget=60)


def test_no_trial_that_ends_is_a_failure(config: RunConfig, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    train = tuning.train

    def fails(config: RunConfig, **given: Any) -> object:
        train(config, **given)
        raise NonFiniteError("the loss is NaN")

    monkeypatch.setattr(tuning._Trials, "probe", lambda _: (0.0, 0.05))
    monkeypatch.setattr(tuning, "train", fails)
    with pytest.raises(RunError, match="no trial ended: the loss is NaN"):
        tune(config, budget=60)
    assert len(ran) == 14


def test_trials_run_the_code_of_a_model_only_where_that_is_said(
    config: RunConfig, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, told = tuning.train, set[object]()

    def noting(config: RunConfig, *, trust_remote_code: bool, **given: Any) -> object:
        told.add(trust_remote_code)
        return train(config, **given)

    monkeypatch.setattr(tuning, "train", noting)
    tune(config, budget=60, trust_remote_code=True)
    assert told == {True}


def test_of_a_whole_model_the_rate_alone_is_tried(tmp_path: Path, ran: Ran) -> None:
    folder = str(tmp_path / "tuned")
    config = tiny_config(tmp_path, method="full", data__eval=0.2, training__output_dir=folder)
    done = tune(config, budget=30)
    assert len(done.trials) == 4 + 2
    assert {tuple(trial.changes) for trial in done.trials} == {("training.learning_rate",)}


@pytest.mark.slow
def test_the_command_tries_real_runs_and_writes_a_config_that_trains(tmp_path: Path) -> None:
    from tests.cli.running import loraft, refused

    values = tiny_config(tmp_path).model_dump(mode="json", exclude_defaults=True)
    values["data"]["eval"] = 0.2
    values["training"] |= {"output_dir": None}
    del values["training"]["max_steps"]
    (tmp_path / "c.json").write_text(json.dumps(values))
    assert "no duration" in refused(loraft("tune", "c.json", "--budget", "soon", cwd=tmp_path))
    done = loraft("tune", "c.json", "--budget", "60s", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    least = min(trial["eval_loss"] for trial in told["trials"][-2:])
    assert least < max(trial["eval_loss"] for trial in told["trials"])
    checked = loraft("check", told["written"], "--json", cwd=tmp_path)
    assert json.loads(checked.stdout)["steps"] == told["values"]["training.max_steps"]
    assert "is there already" in refused(loraft("tune", "c.json", cwd=tmp_path))

"""Learning rate, rank and length of a run, tried on its own rows within a time: each trial is an ordinary run.

By successive halving: all candidates are trained for a few steps, and the better half of them anew for twice as many,
until one is left. A trial's schedule is as long as the trial, so a short one ends as a run of that length would.

Source: Jamieson and Talwalkar 2016 (https://arxiv.org/abs/1502.07943), algorithm 1.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from pathlib import Path
from statistics import median

from loraft.api.runs import train
from loraft.config.change_config import with_values
from loraft.config.config_file import inline, takes_path
from loraft.config.schema import RunConfig
from loraft.errors import ConfigError, Interrupted, NonFiniteError, OutOfMemoryError, RunError, RunFolderError
from loraft.events import Event, Note, Observer, Progress, ignored
from loraft.io.atomic import write_whole
from loraft.io.checksums import sha256_of_facts
from loraft.io.sealed import read_sealed, sealed
from loraft.models.remote_code import as_trusted, is_trusted
from loraft.planning.run_plan import RunPlan, plan_run
from loraft.training.run_dir import RunFolder
from loraft.training.run_events import StepLogged
from loraft.training.trainer import TrainResult

RATES = (1 / 3, 1.0, 3.0, 10.0)
"""The learning rates that are tried, in proportion to that of the config."""
RANKS = (1, 4)
"""And the ranks; alpha goes with them, so that an update of the same size stays one."""
PROBED = 6
"""The steps of the run by which the time of a step is measured."""
FEWEST = 8
"""The fewest steps of a trial that tell anything."""
STATE, PROBE = "tune.json", "probe"
Changes = Mapping[str, float | int]


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        eval_loss: The least loss of an evaluation, at `best_step`; None where the run failed, for the reason `failed`.
    """

    changes: Changes
    steps: int
    eval_loss: float | None
    best_step: int | None
    seconds: float
    run: str
    failed: str | None = None

    @property
    def order(self) -> float:
        """What trials are compared by, the less the better."""
        return math.inf if self.eval_loss is None else self.eval_loss


@dataclass(frozen=True)
class Tuned:
    """What was tried, in the order in which it was, and what is the best of the longest trials."""

    trials: tuple[Trial, ...]
    best: Trial
    values: Changes
    folder: Path

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it."""
        trials = [asdict(trial) for trial in self.trials]
        return {"values": dict(self.values), "folder": str(self.folder), "trials": trials}


@as_trusted
@takes_path
def tune(
    config: RunConfig,
    *,
    budget: float,
    name: str = "run",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    observer: Observer = ignored,
) -> Tuned:
    """Try learning rates, ranks and lengths of a run on its own rows, and tell the best.

    Args:
        config: The run, or the path of its file; its learning rate and rank stand in the middle of what is tried.
        budget: The seconds that all trials may take together.
        name: What the folder is called where `training.output_dir` is not set; where a file is given, its name.
        overwrite: Begin anew, whatever the folder holds.
        trust_remote_code: Run the code that the model brings.
        observer: Is told of each trial.

    Raises:
        InvalidInputError: The config cannot be trained, holds no rows out, or the budget is too small to tell anything.
        RunError: No trial ended.
        Interrupted: By a signal; the same call goes on.
    """
    if config.data.eval is None:
        remedy = "hold rows out, such as data.eval: 0.1"
        raise ConfigError("trials are compared on rows held out, and there are none", key="data.eval", remedy=remedy)
    folder = Path(config.training.output_dir or f"runs/{name}-tune").expanduser()
    plan = plan_run(config)
    candidates = list(_candidates(plan))
    digest = sha256_of_facts({"config": config.model_dump(mode="json"), "budget": budget})
    job = _Trials(config, folder, observer, digest)
    job.open(overwrite=overwrite)
    if not job.steps:
        job.steps = _affordable(*job.probe(), budget, len(candidates))
        job.save()
    best = _best(job, candidates)
    if best.eval_loss is None:
        raise RunError(f"no trial ended: {best.failed}", where=folder, remedy="Begin with a lower learning rate.")
    return Tuned(tuple(job.trials), best, {**best.changes, "training.max_steps": best.best_step or best.steps}, folder)


def _best(job: _Trials, candidates: Sequence[Changes]) -> Trial:
    """The best of the longest trials: the better half of each round is trained for twice as long."""
    kept, steps, total = candidates, job.steps, _runs(len(candidates))
    while True:
        made = sorted((job.trial(changes, steps, total) for changes in kept), key=lambda trial: trial.order)
        if len(kept) <= 2:
            return made[0]
        kept, steps = [trial.changes for trial in made[: len(kept) // 2]], 2 * steps


def _candidates(plan: RunPlan) -> Iterator[Changes]:
    """The values that are tried: rates by ranks, or rates alone of a model that is trained whole."""
    rate, lora = plan.config.training.learning_rate, plan.config.lora
    assert rate != "auto", "the plan resolves it"
    adapts = plan.config.method != "full"
    for rank, share in product(RANKS if adapts else RANKS[:1], RATES):
        changes: dict[str, float | int] = {"training.learning_rate": float(f"{rate * share:.3g}")}
        if adapts:
            changes |= {"lora.r": lora.r * rank, "lora.alpha": lora.alpha * rank}
        yield changes


def _rungs(candidates: int) -> int:
    return int(math.log2(candidates))


def _runs(candidates: int) -> int:
    """How many trials there are in all rounds."""
    return sum(candidates >> rung for rung in range(_rungs(candidates)))


def _affordable(loading: float, a_step: float, budget: float, candidates: int) -> int:
    """The steps of the shortest trials, where loading takes so long, and a step.

    Raises:
        ConfigError: They are too few.
    """
    rungs = _rungs(candidates)
    runs = _runs(candidates)
    steps = int((budget - runs * loading) / (rungs * candidates * a_step))
    if steps < FEWEST:
        needed = math.ceil((runs * loading + FEWEST * rungs * candidates * a_step) / 60)
        message = (
            f"{runs} trials of at least {FEWEST} steps take longer: loading {loading:.0f} s, a step {a_step:.2g} s"
        )
        raise ConfigError(message, parameter="budget", remedy=f"Give at least {needed}m.")
    return steps


@dataclass
class _Trials:
    """What makes trials, each in a folder of its own, and keeps what came of them, by which the same command goes on.

    Attributes:
        digest: Of the config and the budget.
        steps: Of the shortest trials; 0 where that is not known yet.
    """

    config: RunConfig
    folder: Path
    observer: Observer
    digest: str
    steps: int = 0
    trials: list[Trial] = field(default_factory=list)

    def open(self, *, overwrite: bool) -> None:
        """Take up what the folder holds of this tuning.

        Raises:
            RunFolderError: It holds another one, or something else.
        """
        folder, file = self.folder, self.folder / STATE
        if not folder.exists() or (folder.is_dir() and all(each.name == PROBE for each in folder.iterdir())):
            return
        if not file.is_file():
            message = f"holds something else than a tuning: there is no {STATE}"
            raise RunFolderError(message, where=folder, remedy="name another folder")
        if overwrite:
            shutil.rmtree(folder)
            return
        try:
            held = read_sealed(file)
            digest, self.steps, self.trials = held["digest"], held["steps"], [Trial(**each) for each in held["trials"]]
        except (KeyError, TypeError):
            message = "is damaged: which trials were made is not known"
            raise RunFolderError(message, where=file, remedy="replace the tuning by `overwrite`") from None
        if digest != self.digest:
            message = "holds a tuning of another config or another budget"
            raise RunFolderError(message, where=folder, remedy="replace it by `overwrite`, or name another folder")

    def save(self) -> None:
        """Keep what there is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = {"digest": self.digest, "steps": self.steps, "trials": [asdict(trial) for trial in self.trials]}
        write_whole(self.folder / STATE, json.dumps(sealed(held), indent=1) + "\n")

    def probe(self) -> tuple[float, float]:
        """The seconds that loading and evaluating take, and a step, by a short run of the config as it is."""
        at: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, StepLogged):
                at.append(time.perf_counter())

        begun, run = time.perf_counter(), self.folder / PROBE
        self._run({}, PROBED, run, note, overwrite=True)
        whole = time.perf_counter() - begun
        shutil.rmtree(run)
        a_step = median(later - sooner for sooner, later in pairwise(at))
        return max(0.0, whole - PROBED * a_step), a_step

    def trial(self, changes: Changes, steps: int, total: int) -> Trial:
        """The trial of these values, made now or before."""
        trials = self.trials
        found = next((each for each in trials if each.changes == changes and each.steps == steps), None)
        if found is None:
            found = self._made(changes, steps, self.folder / f"trial-{len(trials) + 1:02}")
            trials.append(found)
            self.save()
            self.observer(Note(_sentence(found)))
        self.observer(Progress("trials", len(trials), total))
        return found

    def _made(self, changes: Changes, steps: int, run: Path) -> Trial:
        begun = time.perf_counter()
        try:
            done = self._run(changes, steps, run, ignored)
        except (NonFiniteError, OutOfMemoryError) as error:
            reason = error.problems[0].message
            return Trial(changes, steps, None, None, time.perf_counter() - begun, str(run), reason)
        except Interrupted as stop:
            made = f"stopped; {len(self.trials)} trials are made"
            remedy = "The same command goes on with them."
            raise Interrupted(made, signal_number=stop.signal_number, remedy=remedy) from stop
        seconds = time.perf_counter() - begun
        return Trial(changes, steps, done.best_eval_loss, done.best_step, seconds, str(run))

    def _run(
        self, changes: Changes, steps: int, run: Path, observer: Observer, *, overwrite: bool = False
    ) -> TrainResult:
        quarter = max(1, steps // 4)
        settings = {
            "training.max_steps": steps, "training.output_dir": str(run), "training.eval_steps": quarter,
            "training.save_steps": steps, "training.save_total_limit": 1, "training.logging_steps": 1,
            "training.report_to": (), "training.push_to_hub": None, "training.sample_prompts": (),
            "training.early_stopping_patience": None, "training.metric_for_best_model": "loss",
        }  # fmt: skip
        config = with_values(self.config, {**settings, **changes})
        goes_on = RunFolder(run).holds_run and not overwrite
        trusted = is_trusted()
        return train(
            config, name=run.name, resume=goes_on, overwrite=overwrite, trust_remote_code=trusted, observer=observer
        )


def _sentence(trial: Trial) -> str:
    values = ", ".join(f"{key} {inline(value)}" for key, value in trial.changes.items() if key != "lora.alpha")
    came = f"eval loss {trial.eval_loss:.4f}" if trial.eval_loss is not None else f"failed: {trial.failed}"
    return f"{values}, {trial.steps} steps: {came}, {trial.seconds:.0f} s"

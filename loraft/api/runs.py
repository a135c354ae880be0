"""Runs: what is known of one before its first step, and training itself."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from loraft.adapters.inject import AdaptedModel
from loraft.config.schema import RunConfig
from loraft.evaluation.open_model import tell
from loraft.events import Observer, ignored
from loraft.inference.engine import stream
from loraft.inference.sampling import SamplingParams
from loraft.rows.formats import Message
from loraft.training.loop import noted_signals
from loraft.training.run_dir import (
    RunFolder,
    check_disk,
    choose_run_folder,
    left_unfinished,
    refuse_own_inputs,
    refuse_taken,
)
from loraft.training.run_plan import CheckReport, RunPlan, plan_run, report
from loraft.training.trainer import TrainResult, run_plan

FOLDER_IN_USE = "{} holds a run already: `loraft.train` goes on with it by `resume`, and replaces it by `overwrite`"


def check(config: RunConfig, *, name: str = "run", verbose: bool = False) -> CheckReport:
    """Everything that can be known of a run before its first step, without loading a weight.

    Args:
        config: The run.
        name: What runs of this config are called where `training.output_dir` is not set.
        verbose: Name each row that stands in the data twice.

    Raises:
        InvalidInputError: With every problem found; `train` refuses the same, and a folder that holds a run.
    """
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=False))
    refuse_taken(folder, resume=folder.holds_run, overwrite=False)
    plan = plan_run(config)
    check_disk(folder.path, plan.memory, keep=config.training.save_total_limit)
    found = report(plan, folder.path, verbose=verbose)
    return replace(found, notes=(*found.notes, FOLDER_IN_USE.format(folder.path))) if folder.holds_run else found


def train(
    config: RunConfig,
    *,
    name: str = "run",
    resume: bool = False,
    resume_anyway: bool = False,
    overwrite: bool = False,
    observer: Observer = ignored,
    command: Sequence[str] = (),
) -> TrainResult:
    """Train as the config says, and save what was trained.

    Args:
        config: The run.
        name: What runs of this config are called where `training.output_dir` is not set.
        resume: Go on from the newest checkpoint that verifies.
        resume_anyway: Go on even though config, data or base have changed; implies `resume`.
        overwrite: Replace the run that the folder holds.
        observer: Is told what happens.
        command: How the run was started, for its manifest.

    Raises:
        InvalidInputError: Before the first step, with every problem found.
        RunError: While running; the checkpoints before it stand.
        Interrupted: By a signal; the state was saved. SIGUSR1 stops nothing: a checkpoint is saved after the next step.
    """
    resume = resume or resume_anyway
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=resume))
    refuse_taken(folder, resume=resume, overwrite=overwrite)
    if overwrite:
        refuse_own_inputs(folder, config)
    if config.training.output_dir is None and not resume:
        tell(observer, *left_unfinished(folder.path, name))
    with noted_signals(signal.SIGUSR1) as save_requests:  # planning too: before the first step it would end the process
        plan = plan_run(config)
        check_disk(folder.path, plan.memory, keep=config.training.save_total_limit)
        with folder.open():
            return run_plan(
                plan,
                folder,
                resume=resume,
                resume_anyway=resume_anyway,
                overwrite=overwrite,
                observer=observer,
                save_requests=save_requests,
                answerer=lambda adapted: _answerer(adapted, plan),
                command=command,
            )


def _answerer(adapted: AdaptedModel, plan: RunPlan) -> Callable[[str], str]:
    """Answers to `training.sample_prompts` as `generate` would give them: greedy, whatever the defaults are."""
    renderer = plan.data.renderer
    rules = SamplingParams().beginning_with(plan.task.first_tokens(adapted.model, renderer))

    def answer(prompt: str) -> str:
        asked = [Message("user", prompt)]
        system = renderer.system_prompt
        ids = renderer.prompt_ids([Message("system", system), *asked] if system else asked)
        limit = plan.config.generation.max_new_tokens
        answered = stream(
            adapted.model, renderer.tokenizer, ids, rules=rules, max_new_tokens=limit, stop_ids=renderer.stop_ids
        )
        return answered.completion.completion

    return answer

"""The table of contents of the program: one short function a verb.

`check` tells what `train` would do, `train` does it, `generate` runs what came of it, `merge` folds it into its base.
Each takes plain values and gives plain values back; what there is to tell on the way goes to an observer, and nothing
is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraft.adapters.attach import AdaptedModel
from loraft.adapters.merge import BaseChoice, MergedDtype, prepare_merge
from loraft.adapters.merge_report import MergeReport
from loraft.adapters.merged_folder import chosen_folder
from loraft.adapters.weighted import resolve_weighted
from loraft.config.schema import QuantizationSection, RunConfig
from loraft.data.formats import Message
from loraft.evaluation.merging import merge_and_verify
from loraft.evaluation.verification import LEAST_POSITIONS
from loraft.generation.answer import Completion
from loraft.generation.engine import Stream, Token, stream
from loraft.generation.options import AnswerOptions
from loraft.generation.sampling import SamplingRules
from loraft.generation.session import open_session
from loraft.training.events import Note, Observer, Progress
from loraft.training.plan import RunPlan, plan_run
from loraft.training.report import CheckReport, report
from loraft.training.run import TrainResult, run_plan
from loraft.training.run_folder import RunFolder, check_disk, choose_run_folder, refuse_taken

__all__ = ["Answering", "check", "generate", "merge", "train"]

AS_SAVED = AnswerOptions()


def _ignore(_: object) -> None:
    """The observer of a caller who has none."""


def check(config: RunConfig, *, name: str = "run") -> CheckReport:
    """Everything that can be known of a run before its first step, without loading a weight.

    Args:
        config: The run.
        name: What runs of this config are called where `training.output_dir` is not set.

    Raises:
        Refused: With every problem found; `train` refuses the same.
    """
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=False))
    refuse_taken(folder, resume=False, overwrite=False)
    plan = plan_run(config)
    check_disk(folder.path, plan.memory, keep=config.training.save_total_limit)
    return report(plan, folder.path)


def train(
    config: RunConfig,
    *,
    name: str = "run",
    resume: bool = False,
    resume_anyway: bool = False,
    overwrite: bool = False,
    observer: Observer = _ignore,
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
        Refused: Before the first step, with every problem found.
        Failed: While running; the checkpoints before it stand.
        Stopped: By a signal; the state was saved.
    """
    resume = resume or resume_anyway
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=resume))
    refuse_taken(folder, resume=resume, overwrite=overwrite)
    plan = plan_run(config)
    check_disk(folder.path, plan.memory, keep=config.training.save_total_limit)
    folder.open(overwrite=overwrite)
    try:
        return run_plan(
            plan,
            folder,
            resume=resume,
            resume_anyway=resume_anyway,
            observer=observer,
            answerer=lambda adapted: _answerer(adapted, plan),
            command=command,
        )
    finally:
        folder.close()


def _answerer(adapted: AdaptedModel, plan: RunPlan) -> Callable[[str], str]:
    """Answers to `training.sample_prompts` as `generate` would give them: greedy, whatever the defaults are."""
    renderer = plan.data.renderer

    def answer(prompt: str) -> str:
        asked = [Message("user", prompt)]
        system = renderer.system_prompt
        ids = renderer.prompt_ids([Message("system", system), *asked] if system else asked)
        limit = plan.config.generation.max_new_tokens
        answered = stream(
            adapted.model, plan.tokenizer, ids, rules=SamplingRules(), max_new_tokens=limit, stop_ids=renderer.stop_ids
        )
        return answered.completion.completion

    return answer


@dataclass(frozen=True, eq=False)
class Answering(Iterator[Token]):
    """An answer that is on its way: iterate over its tokens, then read `completion`.

    Attributes:
        stream: The tokens as they come.
        notes: What was decided and found, a sentence each.
    """

    stream: Stream
    notes: tuple[str, ...]

    def __next__(self) -> Token:
        return next(self.stream)

    @property
    def completion(self) -> Completion:
        """The whole answer."""
        return self.stream.completion


def generate(
    target: str | None,
    adapters: Sequence[str] = (),
    *,
    prompt: str,
    options: AnswerOptions = AS_SAVED,
    base_model: str | None = None,
    quantize: QuantizationSection | None = None,
    merge: bool = False,
) -> Answering:
    """Answer a prompt with what TARGET and `adapters` mean.

    Args:
        target: A base model, an adapter, a run, a checkpoint or a config.
        adapters: Adapters to put on it, `NAME=DIR` or `DIR`; the first one answers.
        prompt: What is asked.
        options: How it is answered.
        base_model: The base to use, whatever the adapters name.
        quantize: Store the base in 4 bits; None stores it as it was in training.
        merge: Fold the adapter into the weights first.

    Raises:
        Refused: The target or the prompt cannot be used.
    """
    session = open_session(target, adapters, base_model=base_model, quantize=quantize, merge=merge)
    voice = session.voice()
    answered = stream(
        session.model,
        voice.tokenizer,
        voice.prompt_ids(voice.conversation(prompt, options.system)),
        rules=SamplingRules.of(voice.defaults, options),
        max_new_tokens=options.max_new_tokens or voice.max_new_tokens,
        stop_ids=voice.stop_ids,
        seed=options.seed,
    )
    return Answering(answered, session.notes)


def merge(
    target: str | None = None,
    out: str | Path | None = None,
    adapters: Sequence[str] = (),
    *,
    base: BaseChoice | None = None,
    dtype: MergedDtype = "auto",
    base_model: str | None = None,
    verified: bool = True,
    positions: int = LEAST_POSITIONS,
    overwrite: bool = False,
    observer: Observer = _ignore,
) -> MergeReport:
    """Fold adapters into their base, and prove that the result is the model that was trained.

    Args:
        target: An adapter, a run, a checkpoint or a config; or the base beside `adapters`.
        out: The folder to write; None is `merged` beside the adapter.
        adapters: Adapters to sum, `DIR=WEIGHT` or `DIR`.
        base: `dequantized` is the base as 4-bit training saw it, `original` as its files have it; None is the one that
            the adapter was trained on.
        dtype: Of the merged weights; `auto` is that of the base's files.
        base_model: The base to use, whatever the adapters name.
        verified: Compare the merged model with the adapted one before it appears.
        positions: On how many positions at least.
        overwrite: Replace the merged model that `out` holds.
        observer: Is told what happens.

    Raises:
        Refused: Before anything is written: an adapter that does not fit, a folder that is taken, a disk too small.
        Failed: The merged model is not the adapted one, or memory or disk ran out; `out` is as it was.
    """
    found, weights = resolve_weighted(target, adapters, base_model=base_model)
    job = prepare_merge(found, weights, base=base, dtype=dtype)
    folder = Path(out) if out is not None else chosen_folder(found, adapters[0] if adapters else target)
    for note in job.notes:
        observer(Note(note))
    return merge_and_verify(
        job,
        folder,
        positions=positions if verified else None,
        overwrite=overwrite,
        progress=lambda what, done, total: observer(Progress(what, done, total)),
    )

"""The table of contents of the program: one short function a verb.

`check` tells what `train` would do, `train` does it, `generate` runs what came of it. Each takes plain values and
gives plain values back; what there is to tell on the way goes to an observer, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loraft.adapters.attach import AdaptedModel
from loraft.config.schema import QuantizationSection, RunConfig
from loraft.data.formats import Message
from loraft.generation.answer import Completion, stop_texts_of
from loraft.generation.engine import Stream, Token, stream
from loraft.generation.options import AnswerOptions
from loraft.generation.sampling import SamplingRules, unheeded_defaults
from loraft.generation.session import Voice, open_session
from loraft.training.events import Observer
from loraft.training.plan import RunPlan, plan_run
from loraft.training.report import CheckReport, report
from loraft.training.run import TrainResult, run_plan
from loraft.training.run_folder import RunFolder, check_disk, choose_run_folder, refuse_taken

__all__ = ["Answering", "check", "generate", "train"]

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
) -> Answering:
    """Answer a prompt with what TARGET and `adapters` mean.

    Args:
        target: A base model, an adapter, a run, a checkpoint or a config.
        adapters: Adapters to put on it, `NAME=DIR` or `DIR`; the first one answers.
        prompt: What is asked.
        options: How it is answered.
        base_model: The base to use, whatever the adapters name.
        quantize: Store the base in 4 bits; None stores it as it was in training.

    Raises:
        Refused: The target or the prompt cannot be used.
    """
    session = open_session(target, adapters, base_model=base_model, quantize=quantize)
    voice = session.voice()
    answered = stream(
        session.model,
        voice.tokenizer,
        voice.prompt_ids(voice.conversation(prompt, options.system)),
        rules=SamplingRules.of(voice.defaults, options),
        max_new_tokens=options.max_new_tokens or voice.max_new_tokens,
        stop_ids=voice.stop_ids,
        stop_texts=stop_texts_of(voice.defaults, options),
        seed=options.seed,
    )
    return Answering(answered, (*session.notes, *_unheeded(voice)))


def _unheeded(voice: Voice) -> tuple[str, ...]:
    """The note on what a saved generation_config asks for and does not get."""
    settings = unheeded_defaults(voice.defaults)
    return (f"generation_config.json asks for {', '.join(settings)}, which loraft does not do",) if settings else ()

"""The table of contents of the program: one short function a verb.

`check` tells what `train` would do, `train` does it, `generate` runs what came of it. Each takes plain values and
gives plain values back; what there is to tell on the way goes to an observer, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from loraft.adapters.attach import AdaptedModel
from loraft.config.schema import QuantizationSection, RunConfig
from loraft.data.formats import Message
from loraft.generation.answer import Completion, stop_texts_of
from loraft.generation.cache_comparison import CacheComparison, compare_cache
from loraft.generation.engine import Stream, Token, stream
from loraft.generation.options import AnswerOptions
from loraft.generation.pieces import Pieces
from loraft.generation.rules import SamplingRules, unheeded_defaults
from loraft.generation.session import Voice, open_session
from loraft.generation.trace import Trace
from loraft.generation.tracer import Tracer
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
        tracer: Is told how each token comes about; None where nobody asked.
        with_cache: Makes the same answer with a cache, to compare one without with; None where nobody asked.
    """

    stream: Stream
    notes: tuple[str, ...]
    tracer: Tracer | None = None
    with_cache: Callable[[], CacheComparison] | None = None

    def __next__(self) -> Token:
        return next(self.stream)

    @property
    def completion(self) -> Completion:
        """The whole answer."""
        return self.stream.completion

    @property
    def trace(self) -> Trace | None:
        """How the answer came about, where that was asked for."""
        _ = self.completion
        return self.tracer.trace if self.tracer is not None else None


def generate(
    target: str | None,
    adapters: Sequence[str] = (),
    *,
    prompt: str,
    options: AnswerOptions = AS_SAVED,
    base_model: str | None = None,
    quantize: QuantizationSection | None = None,
    trace: bool = False,
    layers: bool = False,
    use_cache: bool = True,
) -> Answering:
    """Answer a prompt with what TARGET and `adapters` mean.

    Args:
        target: A base model, an adapter, a run, a checkpoint or a config.
        adapters: Adapters to put on it, `NAME=DIR` or `DIR`; the first one answers.
        prompt: What is asked.
        options: How it is answered.
        base_model: The base to use, whatever the adapters name.
        quantize: Store the base in 4 bits; None stores it as it was in training.
        trace: Tell how each token comes about.
        layers: And what each layer would have said.
        use_cache: False reads everything again at each step; the answer can then be compared with one with a cache.

    Raises:
        Refused: The target or the prompt cannot be used.
    """
    session = open_session(target, adapters, base_model=base_model, quantize=quantize)
    voice = session.voice()
    notes = [*session.notes, *_unheeded(voice)]
    rules = SamplingRules.of(voice.defaults, options)
    if trace and rules.num_beams > 1 and options.num_beams is None:
        notes.append(
            f"the {rules.num_beams} beams that generation_config.json asks for cannot be traced: it is one here"
        )
        rules = replace(rules, num_beams=1)
    seed = torch.Generator().seed() if options.seed is None else options.seed

    def answer(*, use_cache: bool = True, tracer: Tracer | None = None) -> Stream:
        return stream(
            session.model,
            voice.tokenizer,
            voice.prompt_ids(voice.conversation(prompt, options.system)),
            rules=rules,
            max_new_tokens=options.max_new_tokens or voice.max_new_tokens,
            stop_ids=voice.stop_ids,
            stop_texts=stop_texts_of(voice.defaults, options),
            seed=seed,
            use_cache=use_cache,
            tracer=tracer,
        )

    tracer = Tracer(session.model, voice.tokenizer, layers=layers) if trace else None
    answered = answer(use_cache=use_cache, tracer=tracer)

    def with_cache() -> CacheComparison:
        return compare_cache(answer().completion, answered.completion, Pieces(voice.tokenizer).of)

    return Answering(answered, tuple(notes), tracer, None if use_cache else with_cache)


def _unheeded(voice: Voice) -> tuple[str, ...]:
    """The note on what a saved generation_config asks for and does not get."""
    settings = unheeded_defaults(voice.defaults)
    return (f"generation_config.json asks for {', '.join(settings)}, which loraft does not do",) if settings else ()

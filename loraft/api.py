"""The table of contents of the program: one short function a verb.

`check` tells what `train` would do, `train` does it, `generate` runs what came of it. Each takes plain values and
gives plain values back; what there is to tell on the way goes to an observer, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from loraft.adapters.attach import AdaptedModel
from loraft.adapters.resolve import resolve_target
from loraft.adapters.store import load_adapter
from loraft.config.schema import RunConfig
from loraft.data.formats import Message
from loraft.data.tokenize import Renderer
from loraft.generation.answer import Completion
from loraft.generation.engine import Stream, Token, stream
from loraft.generation.sampling import SamplingRules
from loraft.models.loading import load_model
from loraft.models.placement import place
from loraft.training.events import Observer
from loraft.training.plan import RunPlan, plan_run
from loraft.training.report import CheckReport, report
from loraft.training.run import TrainResult, run_plan
from loraft.training.run_folder import RunFolder, check_disk, choose_run_folder, refuse_taken

__all__ = ["Answering", "check", "generate", "train"]


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
        ids = renderer.prompt_ids(_conversation(prompt, renderer.system_prompt))
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
    *,
    adapter: str | None = None,
    prompt: str,
    system: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
) -> Answering:
    """Answer a prompt with what TARGET and `adapter` mean.

    Whatever is None is as it was saved with the adapter, or as the base has it.

    Raises:
        Refused: The target or the prompt cannot be used.
    """
    found = resolve_target(target, adapter)
    section = found.model_section
    placement = place(section)
    loaded = load_model(section, placement, quantization=found.quantization)
    adapted = load_adapter(loaded, found.adapter) if found.adapter is not None else None
    home = found.adapter if found.adapter is not None else loaded.folder
    renderer = Renderer.for_tokenizer(loaded.tokenizer, system_prompt=found.system_prompt, conversations=False)
    defaults = _generation_config(home)
    messages = _conversation(prompt, renderer.system_prompt if system is None else system)
    answered = stream(
        adapted.model if adapted is not None else loaded.model,
        loaded.tokenizer,
        renderer.prompt_ids(messages),
        rules=SamplingRules.of(defaults, temperature=temperature, top_k=top_k, top_p=top_p),
        max_new_tokens=max_new_tokens or (defaults.max_new_tokens if defaults else None) or 256,
        stop_ids=_stop_ids(renderer, defaults),
        seed=seed,
    )
    notes = (*found.notes, *placement.notes, *loaded.notes, *(adapted.notes if adapted else ()), *renderer.notes)
    return Answering(answered, notes)


def _conversation(prompt: str, system: str | None) -> list[Message]:
    asked = [Message("user", prompt)]
    return [Message("system", system), *asked] if system else asked


def _generation_config(folder: Path) -> GenerationConfig | None:
    present = (folder / "generation_config.json").is_file()
    return GenerationConfig.from_pretrained(folder) if present else None


def _stop_ids(renderer: Renderer, defaults: GenerationConfig | None) -> tuple[int, ...]:
    """Every way in which an answer may end: the chat's and those that were saved."""
    saved: Any = defaults.eos_token_id if defaults is not None else None
    listed = saved if isinstance(saved, list) else [] if saved is None else [saved]
    return tuple(dict.fromkeys([*renderer.stop_ids, *listed]))

"""A stand-in for `loraft.api` that answers at once: the command line is tested without torch."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

from loraft.config.schema import RunConfig
from loraft.errors import DataError, Interrupted, NonFiniteError, Problem, VerificationError
from loraft.inference.requests import ModelRequest
from loraft.training.run_events import (
    Evaluated,
    Event,
    Note,
    Progress,
    RunStarted,
    SampleAnswered,
    Saved,
    StepDone,
    StepLogged,
)

STEPS = 300
CALLS: list[dict[str, object]] = []
"""The arguments of every call, for tests to read."""


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The report as JSON shows it."""
        return {
            "notes": self.notes,
            "model": {"name": "builtin:smollm2-135m-instruct", "family": "llama", "parameters": 134_515_008},
            "data": {
                "read": 800,
                "kept": 798,
                "dropped": {"overlength": 2, "without trained tokens": 0},
                "trained_share": 0.3141,
                "lengths": [{"quantile": 0.5, "tokens": 108}, {"quantile": 0.99, "tokens": 131}],
            },
            "adapter": {
                "trainable_parameters": 4_884_480,
                "total_parameters": 139_399_488,
                "modules": [f"model.layers.{layer}.self_attn.q_proj" for layer in range(30)],
            },
            "memory": {"weights_bytes": 269_000_000, "optimizer_bytes": 39_075_840, "peak_bytes": 2_100_000_000},
            "steps": STEPS,
            "warmup_steps": 9,
        }


@dataclass(frozen=True)
class Result:
    """What `train` made."""

    run_folder: Path

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it."""
        return {
            "run_folder": self.run_folder,
            "steps": STEPS,
            "loss": 0.2718,
            "eval_loss": math.inf,
            "best_step": 200,
            "learning_rate": 2e-4,
        }


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    text: str
    logprob: float
    index: int


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    prompt: str
    completion: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    prefill_ms: float
    decode_tokens_per_second: float


class Stream:
    """An answer as it comes."""

    notes = ("the adapter was trained on another revision of its base",)
    trace = None
    with_cache = None
    ending = SimpleNamespace(by="stop_id", text=None)

    def __init__(self, prompt: str) -> None:
        self.completion = Completion(prompt, "Paris.\x1b[2J", (1, 2, 3), (-0.1, -0.2, -0.3), "stop", 41.5, 22.25)

    def __iter__(self) -> Iterator[Token]:
        """The answer's tokens."""
        for index, text in enumerate(("Par", "is.", "\x1b[2J")):
            yield Token(index + 1, text, -0.1, index)


def check(config: RunConfig, *, name: str, verbose: bool = False) -> Report:
    """Finds nothing wrong, save with data that is called `bad.jsonl`."""
    CALLS.append({"name": name, "steps": config.training.max_steps})
    print("a library prints where it should not")
    if config.data.train[0].path == "bad.jsonl":
        raise DataError.several(
            [
                Problem("the prompt is null", "bad.jsonl:3", "prompt", "Mend the row, or set data.on_bad_row: skip."),
                Problem("not JSON [/red] at column 7", "bad.jsonl:9"),
            ]
        )
    return Report(notes=("device cpu, dtype bfloat16, which this CPU multiplies natively",))


def train(
    config: RunConfig,
    *,
    name: str,
    resume: bool,
    resume_anyway: bool,
    overwrite: bool,
    observer: Callable[[Event], None],
    command: Sequence[str],
) -> Result:
    """Emits what a run of 300 steps emits, at once; the name of the data decides how it ends."""
    CALLS.append({"name": name, "resume": resume, "resume_anyway": resume_anyway, "overwrite": overwrite})
    for event in run_events():
        observer(event)
    match config.data.train[0].path:
        case "nan.jsonl":
            raise NonFiniteError("the loss is NaN at step 137", remedy="Lower training.learning_rate.")
        case "sigint.jsonl" | "sigterm.jsonl" as path:
            number = 2 if path == "sigint.jsonl" else 15
            raise Interrupted(
                "stopped at step 137", signal_number=number, remedy="loraft train x.yaml --resume goes on."
            )
        case "ctrl-c.jsonl":
            raise KeyboardInterrupt
        case "terminated.jsonl":
            os.kill(os.getpid(), signal.SIGTERM)
        case "terminated-in-a-library.jsonl" | "interrupted-in-a-library.jsonl" as path:
            try:
                os.kill(os.getpid(), signal.SIGTERM if path.startswith("terminated") else signal.SIGINT)
            except KeyboardInterrupt:
                raise DataError("transformers cannot read it") from None
        case "bug.jsonl":
            raise RuntimeError("a bug")
    return Result(Path("runs/tickets-1"))


def run_events() -> Iterator[Event]:
    """The events of a run of 300 steps."""
    yield Note("learning_rate auto is 2.00e-4 for method lora")
    yield from (Progress("rows made into tokens", done, 800) for done in range(0, 801, 100))
    yield RunStarted(Path("runs/tickets-1"), 0, STEPS, 3.0, 4_884_480, 139_399_488)
    for step in range(1, STEPS + 1):
        loss, rate, left = 2.5 * math.exp(-step / 90), 2e-4 * (1 - step / STEPS), (STEPS - step) * 1.3
        yield StepDone(step, STEPS, step / 100, loss, rate, 322.4, 2_100_000_000, left)
        if step % 10 == 0:
            yield StepLogged(step, STEPS, step / 100, loss, 1.42, rate, step * 271, 322.4, 2_100_000_000, left)
        if step % 100 == 0:
            yield Evaluated(step, step / 100, loss, math.exp(loss), 2710, 100, step < STEPS)
            yield SampleAnswered(step, "My parcel\nnever came!", '{"kind": "delivery",\n "urgency": "high"}')
            yield Saved(step, Path(f"runs/tickets-1/checkpoints/step-{step:06d}"))


def generate(model: ModelRequest, *, prompt: str, **options: object) -> Stream:
    """Answers `Paris.`, whatever the question, with an escape sequence at its end."""
    CALLS.append({"model": model, "prompt": prompt, **options})
    return Stream(prompt)


@dataclass(frozen=True)
class Compared:
    """A prompt and the answers of all voices."""

    prompt: str
    completions: dict[str, Completion]


@dataclass(frozen=True)
class AnsweredFile:
    """What was done with a file."""

    output: Path

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it."""
        return {"output": self.output, "rows": 300, "held": 100, "cut": 20}


def complete(
    model: ModelRequest,
    *,
    prompts: Sequence[str],
    observer: Callable[[Event], None],
    **options: object,
) -> list[Completion]:
    """Answers each prompt as `generate` does."""
    CALLS.append({"model": model, "prompts": prompts, **options})
    observer(Note("the tokenizer has no padding token"))
    print("a library prints where it should not")
    return [Stream(prompt).completion for prompt in prompts]


def compare(
    model: ModelRequest,
    *,
    prompts: Sequence[str],
    observer: Callable[[Event], None],
    **options: object,
) -> list[Compared]:
    """Lets the base and two adapters answer, or as many as are given."""
    CALLS.append({"model": model, "prompts": prompts, **options})
    observer(Progress("answers", 3, 3))
    voices = ("base", *(model.adapters or ("one", "two")))
    return [Compared(prompt, {voice: Stream(prompt).completion for voice in voices}) for prompt in prompts]


def answer_file(
    model: ModelRequest,
    *,
    prompts: Path,
    output: Path,
    observer: Callable[[Event], None],
    **options: object,
) -> AnsweredFile:
    """Answers nothing; a file called `bad.jsonl` has bad rows."""
    CALLS.append({"model": model, "prompts": prompts, "output": output, **options})
    observer(Progress("rows answered", 300, 300))
    if prompts.name == "bad.jsonl":
        raise DataError.several([Problem("is empty", "bad.jsonl:3", "prompt"), Problem("is not JSON", "bad.jsonl:9")])
    return AnsweredFile(output)


@dataclass(frozen=True)
class MergeReport:
    """What `merge` made."""

    out: Path
    verified: bool
    warnings: tuple[str, ...]
    base: str = "dequantized"
    dtype: str = "bfloat16"
    max_abs_logit_difference: float | None = 0.25
    kl_adapted_merged: float | None = 0.0012
    kl_adapted_base: float | None = 0.75
    top1_agreement: float | None = 0.99609375
    positions: int = 256
    measured_on: str | None = "the run's held-out rows"
    compared: str | None = "logits"
    base_model: str = "builtin:any"
    architecture: str = "LlamaForCausalLM"
    why_this_base: str = "the base as training saw it"
    adapters: tuple[dict[str, object], ...] = ({"name": "adapter", "weight": 0.7},)
    changed_tensors: int = 210
    untied: tuple[str, ...] = ()
    weights_bytes: int = 269_000_000
    merge_seconds: float = 1.25
    labels: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The report as JSON shows it."""
        return {key: value for key, value in asdict(self).items() if key != "out"}


def merge(
    target: str | None,
    out: str | None,
    adapters: Sequence[str],
    *,
    verified: bool,
    observer: Callable[[Event], None],
    **options: object,
) -> MergeReport:
    """Merges at once, and loses too much of an adapter that is called `lost`."""
    CALLS.append({"target": target, "out": out, "adapters": list(adapters), "verified": verified, **options})
    print("a library prints where it should not")
    observer(Note("the adapter was trained on its base in nf4"))
    for done in range(0, 101, 50):
        observer(Progress("bytes merged", done, 100))
    if target == "lost":
        raise VerificationError("the merge lost more than it kept", remedy="--dtype float32 keeps it.")
    return MergeReport(Path(out or "runs/a/merged"), verified, ("the merge lost 12 % of the adapter's effect",))


def command_line(*arguments: str) -> list[str]:
    """The words that start loraft in a process of its own, with this module as its api."""
    program = (
        "import sys, loraft, tests.cli.fake_api as fake; sys.modules['loraft.api'] = loraft.api = fake; "
        "from loraft.__main__ import main; main()"
    )
    return [sys.executable, "-c", program, *arguments]

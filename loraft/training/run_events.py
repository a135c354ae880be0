"""What a training run tells while it goes on, beside what all long work tells (`loraft.events`).

It is light, so that the command line may import it before torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraft.events import Event


@dataclass(frozen=True)
class RunStarted(Event):
    """The first optimizer step is about to be taken.

    Attributes:
        step: The last finished optimizer step: 0, or the step that the run was resumed from.
        epochs: All epochs of the run, a fraction where `max_steps` cuts the last one.
        total_parameters: The number of all numbers, the trained ones included.
    """

    run_folder: Path
    step: int
    steps: int
    epochs: float
    trainable_parameters: int
    total_parameters: int


@dataclass(frozen=True)
class StepDone(Event):
    """An optimizer step was taken; what a live progress line shows.

    Attributes:
        loss: The mean loss of a trained token in this step, in nats.
        tokens_per_second: Tokens in the batches, prompts included, by the clock since the run began or was resumed.
        peak_bytes: The most memory held since the model was loaded: the device's on CUDA, the process's on the CPU.
        seconds_left: The time left at the present rate.
        router_aux_loss: The auxiliary loss of a mixture's routers, without its coefficient; None where it counts
            nothing.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    peak_bytes: int
    seconds_left: float
    router_aux_loss: float | None = None


@dataclass(frozen=True)
class StepLogged(Event):
    """`logging_steps` optimizer steps were taken; one line of `metrics.jsonl`.

    Attributes:
        loss: The mean loss of a trained token since the last logged step, in nats.
        grad_norm: The norm of the gradient before clipping, at this step.
        tokens: All trained tokens so far.
        router_aux_loss: The mean of the routers' auxiliary loss since then, which `loss` leaves out.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    peak_bytes: int
    seconds_left: float
    router_aux_loss: float | None = None


@dataclass(frozen=True)
class StepSkipped(Event):
    """A step whose loss or gradient is not finite changed nothing; one line of `metrics.jsonl`.

    Attributes:
        skipped: How many of them there were so far.
        reason: What was not finite, on which rows, and where in the model it began.
    """

    step: int
    epoch: float
    skipped: int
    reason: str


@dataclass(frozen=True)
class Evaluated(Event):
    """The evaluation rows were read once.

    Attributes:
        loss: Total negative log-likelihood over total trained tokens, in nats.
        perplexity: exp(loss).
        tokens: The number of tokens the loss is a mean of.
        best: Whether no evaluation before it was better.
        figures: `accuracy` and `macro_f1` of a classifier; none of other models.
    """

    step: int
    epoch: float
    loss: float
    perplexity: float
    tokens: int
    rows: int
    best: bool
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleAnswered(Event):
    """One of `training.sample_prompts` was answered by the model as it is at this step."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint or the adapter was written."""

    step: int
    folder: Path

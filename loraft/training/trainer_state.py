"""What a run needs, and where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.optim import Optimizer

from loraft.adapters.inject import AdaptedModel
from loraft.config.schema import TrainingSection
from loraft.dataset.sampler import BatchSampler
from loraft.dataset.streaming import StreamingSampler
from loraft.events import Observer
from loraft.tasks.batch import BatchLayout
from loraft.tasks.loss import TaskLoss
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example
from loraft.training.run_dir import RunFolder
from loraft.training.stop_signals import SaveRequests


@dataclass
class RunState:
    """Where a run is: all that changes from step to step besides tensors. A checkpoint holds it as JSON.

    Attributes:
        step: Optimizer steps taken.
        epoch: The epoch that the next step is in, from 0.
        window: The steps taken in that epoch.
        drawn: The rows of a stream that were drawn in that epoch.
        pieces: The pieces of the next row that were used.
        tokens: Trained tokens so far.
        logged_loss: The loss summed since the last logged step, in nats.
        logged_weight: What that sum is divided by: the trained tokens since then, or the weights of the rows' classes.
        last_loss: The loss that was logged last.
        eval_loss: The newest evaluation's loss.
        eval_figures: What else the newest evaluation measured.
        best_loss: The best evaluation's loss.
        best_figures: What else the best evaluation measured.
        best_score: What it is the best by: the higher, the better.
        best_step: The step of the best evaluation.
        worse: Evaluations since the best one.
        without_gradient: Logged steps in a row, up to the newest, whose gradient was as good as zero.
        owes_evaluation: The evaluation due at this step has not been finished.
        finished: All steps are taken, or early stopping has ended the run.
    """

    step: int = 0
    epoch: int = 0
    window: int = 0
    drawn: int = 0
    pieces: int = 0
    tokens: int = 0
    logged_loss: float = 0.0
    logged_weight: float = 0.0
    last_loss: float | None = None
    eval_loss: float | None = None
    eval_figures: dict[str, float] = field(default_factory=dict)
    best_loss: float | None = None
    best_figures: dict[str, float] = field(default_factory=dict)
    best_score: float | None = None
    best_step: int | None = None
    worse: int = 0
    without_gradient: int = 0
    owes_evaluation: bool = False
    finished: bool = False


@dataclass(frozen=True, eq=False)
class Trainer:
    """Everything that a run needs and that does not change while it goes on.

    Attributes:
        adapted: The model and its trained parameters.
        task: What is learned.
        loss: The same model, giving the summed loss of a batch.
        optimizer: The optimizer over the trained parameters.
        scaler: Loss scaling; enabled for float16 only.
        plan: Which rows share a batch.
        layout: How they are laid.
        train: The training examples.
        evaluation: The examples of an evaluation; empty evaluates nothing.
        settings: The resolved training section.
        steps: All optimizer steps.
        warmup: The steps of warm-up.
        peak_rate: The learning rate after the warm-up.
        eval_every: Steps between evaluations; None is the end of each epoch.
        save_every: Steps between checkpoints; None is the end of each epoch.
        folder: The run's folder.
        total_parameters: All parameters of the model, for the first event.
        save_weights: Writes the trained weights into a folder it is given.
        answer: The model's answer to a prompt, as it is now.
        observer: Who is told.
        save_requests: Who asks for a checkpoint out of turn.
    """

    adapted: AdaptedModel
    task: Task
    loss: TaskLoss
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    plan: BatchSampler | StreamingSampler
    layout: BatchLayout
    train: Sequence[Example]
    evaluation: Sequence[Example]
    settings: TrainingSection
    steps: int
    warmup: int
    peak_rate: float
    eval_every: int | None
    save_every: int | None
    folder: RunFolder
    total_parameters: int
    save_weights: Callable[[Path], object]
    answer: Callable[[str], str]
    observer: Observer
    save_requests: SaveRequests = field(default_factory=SaveRequests)

    @property
    def device(self) -> str:
        """The device that batches go to."""
        return self.adapted.loaded.placement.device

    def epochs(self, step: int) -> float:
        """How many epochs `step` optimizer steps are."""
        epoch = 0
        while step > (steps := self.plan.steps(epoch)):
            step -= steps
            epoch += 1
        return round(epoch + step / steps, 6)

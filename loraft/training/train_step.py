"""What a run is made of and what it computes: optimizer steps and the loss of evaluation rows, all numbers finite.

Weights and outputs are looked at once something is not finite, and not before: that would cost each step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from loraft.adapters.effect import before_training
from loraft.adapters.inject import AdaptedModel
from loraft.config.schema import TrainingSection
from loraft.dataset.prepared_steps import PreparedStep
from loraft.dataset.sampler import StepBatches, chunks, fills
from loraft.distributed.not_finite import Weight, first_output, first_weight
from loraft.distributed.ranks import ALONE, Ranks
from loraft.distributed.sharding import Shards, in_parts, plain, shard
from loraft.errors import NonFiniteError
from loraft.events import Observer
from loraft.models.model_structure import layers_of
from loraft.optimization.optimizer import optimizer_of
from loraft.optimization.schedule import learning_rate
from loraft.planning.run_plan import RunPlan
from loraft.tasks.batches import Batch
from loraft.tasks.loss import TaskLoss
from loraft.tokenization.examples import Example
from loraft.training.embedding_noise import noisy_embeddings
from loraft.training.run_dir import RunFolder

NAMED = 8
"""The most rows that an error names."""
LOWER_RATE = "a lower training.learning_rate is the usual cure"
GO_ON = "; `resume_anyway` goes on with it from the last checkpoint, if there is one"
EVALUATION = "the evaluation loss"
LEAVE_OUT = "; training.on_nonfinite: skip leaves such a step out"
DAMAGED = "the files that the run begins with are damaged: copy or download them again"


@dataclass(eq=False)
class Trainer:
    """A planned run and its model: what stays the same object while it goes on.

    Attributes:
        answer: The model's answer to a prompt, as it is now.
        save_requests: The signals since the last checkpoint that ask for one out of turn.
        ranks: The processes that train it together.
        loss: The model of `adapted`, giving the summed loss of a batch.
        scaler: Loss scaling; enabled for float16 only.
        shards: The model in parts, where each rank has one.
        damaged: What of these was found to be not finite.
    """

    plan: RunPlan
    folder: RunFolder
    adapted: AdaptedModel
    answer: Callable[[str], str]
    observer: Observer
    save_requests: list[int]
    ranks: Ranks = ALONE
    loss: TaskLoss = field(init=False)
    optimizer: Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    shards: Shards | None = field(init=False, default=None)
    damaged: Weight | None = None

    def __post_init__(self) -> None:
        dtype, device = self.plan.placement.dtype, self.plan.placement.device
        self.loss = planned_loss(self.plan, self.adapted)
        if self.ranks.world > 1 and self.plan.config.distributed.strategy == "fsdp2":
            layers = layers_of(self.adapted.loaded.model, self.adapted.loaded.family)
            self.shards = shard(self.loss, layers, self.plan.config.distributed, self.ranks, device)
            self.adapted = in_parts(self.adapted)
        self.optimizer = optimizer_of(self.adapted, self.plan.config)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    @property
    def settings(self) -> TrainingSection:
        """The resolved training section."""
        return self.plan.config.training

    def batch(self, rows: Sequence[Example]) -> Batch:
        """Rows as one batch on the device."""
        return self.plan.task.collate(rows, self.plan.layout).to(self.plan.placement.device)

    def prepare(self, window: StepBatches) -> PreparedStep:
        """The batches of a window on the device, and what their loss is divided by."""
        began = time.perf_counter()
        size, filled = self.settings.per_device_train_batch_size, fills(self.plan.config)
        whole = self.plan.task.with_mismatched(window.batches, self.plan.config)
        rows, counted = self.ranks.share(replace(window, batches=whole), size, filled=filled)
        laid = [self.plan.task.collate(batch, self.plan.layout) for batch in rows]
        weight, tokens, targets = self.ranks.totals(
            sum(self.loss.weight(batch) for batch in laid[:counted]),
            sum(batch.tokens for batch in laid[:counted]),
            sum(batch.targets for batch in laid[:counted]),
        )
        batches = tuple(batch.to(self.plan.placement.device) for batch in laid)
        seconds = time.perf_counter() - began
        return PreparedStep(window, rows, batches, counted, weight, int(tokens), int(targets), seconds)

    def measure_kl(self, batches: Iterable[Batch], counted: int, rows: float) -> None:
        """Tell a loss that compares with it the KL, by the first `counted` batches of each rank: `rows` rows in all."""
        if not self.loss.compares_with_kl:
            return
        with self.gathered():
            found = [self.loss.summed_kl(batch) for batch in batches][:counted]
        total = sum(found, torch.zeros((), device=self.plan.placement.device))
        if self.ranks.world > 1:
            total = total.new_tensor(self.ranks.totals(total.item())[0])
        self.loss.kl = total / rows

    def sum_gradients(self) -> None:
        """Add up the gradients of all ranks; in parts they were as they came to be."""
        if self.shards is None:
            self.ranks.sum_gradients(self.adapted.trainable.values())

    def gathered(self) -> AbstractContextManager[None]:
        """What has to be so that the model can be called by itself, by all ranks together."""
        return nullcontext() if self.shards is None else self.shards.gathered()

    @property
    def router_aux_loss_coef(self) -> float:
        """What the auxiliary loss of the routers counts."""
        coefficient = self.settings.router_aux_loss_coef
        assert coefficient != "auto", "a planned run has decided"
        return coefficient

    def objective(self, batch: Batch, step: PreparedStep) -> tuple[Tensor, list[Tensor]]:
        """What a batch adds to what a step makes small; without a graph its summed loss, and its part of the routers'.

        The routers' of a step is the mean over its tokens: a batch counts by those that it has, padding left out.
        """
        if not self.router_aux_loss_coef:
            loss = self.loss(batch)
            return loss / step.weight, [loss.detach()]
        loss, of_routers = self.loss.with_router_loss(batch)
        part = of_routers.float() * (batch.tokens / step.tokens)
        return loss / step.weight + self.router_aux_loss_coef * part, [loss.detach(), part.detach()]

    def epochs(self, step: int) -> float:
        """How many epochs `step` optimizer steps are."""
        epoch = 0
        while step > (steps := self.plan.batches.steps(epoch)):
            step -= steps
            epoch += 1
        return round(epoch + step / steps, 6)


def planned_loss(plan: RunPlan, adapted: AdaptedModel) -> TaskLoss:
    """The planned model, giving the summed loss of a batch as training computes it."""
    data = plan.data
    drawn = (span.weight for span in data.train_sources for _ in range(span.start, span.stop))
    weights = plan.task.loss_weights(plan.config, data.renderer.labels, data.train, drawn)
    on_device = None if weights is None else weights.to(plan.placement.device)
    autocast = plan.placement.autocast
    smoothing = plan.config.training.label_smoothing_factor
    loss = plan.task.loss_of(plan.config)(adapted.loaded.model, plan.shape.family, autocast, on_device, smoothing)
    has_reference = plan.task.has_reference(plan.config)
    before = before_training(adapted, plan.config.lora) if has_reference else nullcontext
    return plan.task.settled(loss, plan.config, before)


@dataclass
class Throughput:
    """The time and tokens of this process's steps, evaluations and saving left out, and what the newest step came to.

    Attributes:
        first_step: The step that this process began after.
        norm: The norm of the newest step's gradient, before it was clipped.
        loss: Its loss, in nats a trained token.
        router_aux_loss: The auxiliary loss of its routers, where they have one that counts.
    """

    first_step: int
    seconds: float = 0.0
    tokens: int = 0
    norm: float = 0.0
    loss: float = 0.0
    router_aux_loss: float | None = None


def take_step(
    run: Trainer, step: int, prepared: PreparedStep, clock: Throughput, meanwhile: Callable[[], None] = lambda: None
) -> float:
    """One optimizer step: the gradient of the mean loss over all trained tokens of the window, then the update.

    The host waits for the device once, before the update: for the losses and the norm, all of which must be finite.

    Args:
        run: The run.
        step: The number of the step, from 1.
        prepared: What is read.
        clock: Is told how long it took, and what it came to.
        meanwhile: What the host does while the device computes the gradient.

    Returns:
        The summed loss in nats.

    Raises:
        NonFiniteError: The loss or the gradient is NaN or infinite.
    """
    began = time.perf_counter()
    run.ranks.seed(run.plan.config.seed, step)
    run.measure_kl(prepared.batches, prepared.counted, prepared.weight)
    losses = [add_gradient(run, prepared, number) for number in range(len(prepared.batches))]
    run.sum_gradients()
    run.scaler.unscale_(run.optimizer)
    clipped = plain(clip_grad_norm_(list(run.adapted.trainable.values()), run.settings.max_grad_norm or math.inf))
    clipped = clipped.to(losses[0][0].device)  # offloaded gradients, and so their norm, are on the host
    meanwhile()
    *found, norm = torch.stack([*(part for kind in zip(*losses, strict=True) for part in kind), clipped]).tolist()
    loss, of_routers = run.ranks.totals(sum(found[: len(losses)]), sum(found[len(losses) :]))
    _require_all_finite(run, step, prepared, found[: len(losses)], loss, norm)
    clock.norm, clock.router_aux_loss = norm, of_routers if run.router_aux_loss_coef else None
    rate = learning_rate(run.settings, step, run.plan.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    clock.seconds += time.perf_counter() - began + prepared.seconds
    clock.tokens += prepared.tokens
    clock.loss = loss / prepared.weight
    return loss


def add_gradient(run: Trainer, prepared: PreparedStep, number: int) -> list[Tensor]:
    """Add what one batch of a step has to the gradient; without a graph its summed loss, and its part of the routers'.

    Nothing is left of the graph, which would be in the way of the next one.
    """
    with noisy_embeddings(run.plan, run.adapted, prepared.rows[number]):
        whole, parts = run.objective(prepared.batches[number], prepared)
    if number >= prepared.counted:
        whole, parts = whole * 0, [part * 0 for part in parts]
    run.scaler.scale(whole).backward()  # type: ignore[no-untyped-call]
    return parts


def _require_all_finite(
    run: Trainer, step: int, prepared: PreparedStep, losses: Sequence[float], loss: float, norm: float
) -> None:
    """Refuse a step of which the loss of all ranks or their gradient is not finite, by the rank whose it is."""
    _look_at_parts(run, finite=math.isfinite(loss + norm))
    if not math.isfinite(loss):
        for each, rows in zip(losses, prepared.rows, strict=True):
            run.ranks.together(partial(require_finite, each, "the loss", step, rows, run))
    # Of a loss that is scaled up a gradient may overflow by that alone, which a smaller scale meets.
    if not math.isfinite(norm) and not (run.scaler.is_enabled() and run.scaler.get_scale() > 1):
        rows = [row for rows in prepared.rows for row in rows]
        run.ranks.together(lambda: require_finite(norm, "the gradient", step, rows, run))


class EvalLoss(NamedTuple):
    """What an evaluation measured.

    Attributes:
        loss: The summed loss over what it is divided by: the trained tokens, or the weights of the rows' classes.
        targets: The number of trained tokens, or of rows.
        figures: `accuracy` and `macro_f1` of a classifier, of pairs `accuracy` and rewards; none of other models.
    """

    loss: float
    targets: int
    figures: Mapping[str, float]


def evaluate_loss(
    run: Trainer, examples: Sequence[Example], size: int, step: int = 0, *, stop: Callable[[], bool] = lambda: False
) -> EvalLoss | None:
    """Read the examples once, `size` in a batch; the model stays in its mode. None when `stop` asked for the end.

    Raises:
        NonFiniteError: The loss after `step` is NaN or infinite on some of them.
    """
    weight, targets = 0.0, 0
    sums: list[Tensor] = []
    cells: list[Tensor] = []
    share = run.ranks.share_whole(run.plan.task.with_mismatched(chunks(examples, size), run.plan.config))
    laid = (run.batch(rows) for rows in share.batches if not stop())
    run.measure_kl(laid, share.counted, len(examples))
    with torch.inference_mode(), run.gathered():
        for number, rows in enumerate(share.batches):
            if stop():
                return None
            batch = run.plan.task.collate(rows, run.plan.layout)
            summed, decisions = run.loss.with_decisions(batch.to(run.plan.placement.device))
            if number < share.counted:
                weight += run.loss.weight(batch)
                targets += batch.targets
                sums.append(summed)
                cells += [] if decisions is None else [decisions]
        found = torch.stack(sums).tolist() if sums else []  # nothing is waited for before the last batch
    _look_at_parts(run, finite=math.isfinite(sum(found)))
    losses = zip(found, share.batches, strict=False)
    checked = run.ranks.together(lambda: [require_finite(value, EVALUATION, step, rows, run) for value, rows in losses])
    total, weight, of_all = run.ranks.totals(sum(checked), weight, targets)
    # A GPU's tensor would be put on that rank's GPU by all of them.
    decided = [each for each in run.ranks.gathered(torch.cat(cells, 1).cpu() if cells else None) if each is not None]
    return EvalLoss(total / weight, int(of_all), run.loss.figures(torch.cat(decided, 1)) if decided else {})


def require_finite(value: float, what: str, step: int, examples: Sequence[Example], run: Trainer) -> float:
    """`value`, which is called `what` and was computed from the examples at `step`, where it is finite.

    Raises:
        NonFiniteError: It is NaN or infinite; with the first module whose weights or outputs are.
    """
    if math.isfinite(value):
        return value
    named = ", ".join(example.where for example in examples[:NAMED]) + (", …" if len(examples) > NAMED else "")
    cause, remedy = _cause(run, step, examples)
    if run.damaged is None and what != EVALUATION and run.settings.on_nonfinite == "stop":
        remedy += LEAVE_OUT
    message = f"{what} is {value} at step {step}, on the rows {named}{cause}"
    raise NonFiniteError(message, where=run.folder.path, remedy=remedy)


def _cause(run: Trainer, step: int, examples: Sequence[Example]) -> tuple[str, str]:
    """Where it begins, as the end of a sentence, and the remedy."""
    run.damaged = run.damaged or first_weight(run.adapted.loaded)
    if run.damaged:
        name, trained = run.damaged
        return f": {name} holds NaN or infinity", LOWER_RATE + GO_ON if trained and step > 1 else DAMAGED
    size, output = run.settings.per_device_train_batch_size, None
    if run.shards is None:  # else all ranks would have to run it
        output = first_output(run.loss, (run.batch(examples[at : at + size]) for at in range(0, len(examples), size)))
    cause = f": the weights are finite, and {output} is the first module to give NaN or infinity" if output else ""
    if run.adapted.loaded.placement.dtype == torch.float16:
        return cause, f"model.dtype bfloat16 or float32 holds larger numbers, or {LOWER_RATE}{GO_ON}"
    return cause, LOWER_RATE + GO_ON if step > 1 else "no step was taken yet: look at the base and at these rows"


def _look_at_parts(run: Trainer, *, finite: bool) -> None:
    """Look for what is not finite in weights of which each rank has a part, where something was not on any rank."""
    if run.shards is not None and run.ranks.greatest(not finite)[0]:
        run.damaged = next(filter(None, run.ranks.gathered(first_weight(run.adapted.loaded))), None)

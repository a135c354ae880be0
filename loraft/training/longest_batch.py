"""The longest batch of a run, tried before its first step, so that memory runs out then, and not hours later.

Forward, backward, the optimizer's update and a batch of the evaluation, with the optimizer's state already there, as
from the second step on; then everything is what it was, to the bit. Peers scan for such batches likewise: icefall's
`scan_pessimistic_batches_for_oom`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain, count, islice, takewhile

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from loraft.dataset.prepared_steps import PreparedStep
from loraft.dataset.sampler import BatchSampler, StepBatches, chunks, fills
from loraft.dataset.streaming import StreamingSampler
from loraft.distributed.ranks import buckets
from loraft.events import Note
from loraft.figures import counted
from loraft.io.held_memory import peak_bytes, reset_peak
from loraft.kernels.transfer import has_own_memory
from loraft.optimization.optimizer import KINDS, optimizer_of
from loraft.planning.run_plan import RunPlan
from loraft.tasks.batches import BatchLayout
from loraft.tokenization.examples import Example
from loraft.training.checkpoint import restore_rng, rng_state
from loraft.training.out_of_memory import memory_explained
from loraft.training.train_step import Trainer, add_gradient

Explained = Callable[[], AbstractContextManager[None]]
"""Says what helps where memory is out meanwhile."""
LOOKED_AT = 1_000_000
"""Rows that epochs draw, from which on no other epoch is looked at for a longer batch."""


def try_longest_batch(run: Trainer, *, goes_on: bool = False) -> None:
    """Try the longest batch and the longest of the evaluation where that is asked for, and leave all as it was.

    All ranks try theirs together. A run that `goes_on` may have a checkpoint.

    Raises:
        OutOfMemoryError: The memory does not suffice.
    """
    wanted, device = run.settings.try_longest_batch, run.plan.placement.device
    if not (has_own_memory(device) if wanted == "auto" else wanted):
        return
    began, layout = time.perf_counter(), run.plan.layout
    reset_peak(device)
    prepared = run.prepare(longest_step(run.plan, alone=run.ranks.world == 1))
    tried = sorted(range(len(prepared.rows)), key=lambda number: read_in(prepared.rows[number], layout))[-2:]
    what = _in_words(prepared.rows[tried[-1]])
    rows, explained = _longest_evaluated(run), partial(memory_explained, run.plan, run.ranks, goes_on=goes_on)
    with _put_back(run):
        when = f" as the longest batch was tried before the first step ({what})"
        _try_step(run, prepared, tried, partial(explained, when))
        when = f" as the longest batch of the evaluation was tried before the first step ({_in_words(rows)})"
        _try_evaluation(run, rows, partial(explained, when, evaluates=True))
    seconds, held = time.perf_counter() - began, peak_bytes(device) / 1e9
    note = f"the longest batch ({what}) was tried in {seconds:.1f} s: at most {held:.1f} GB were held"
    if run.plan.data.stream is not None:
        known = counted(len(run.plan.data.train), "row")
        note += f"; it is of the first {known}, and later ones may be longer, up to data.max_length"
    run.observer(Note(note))


def longest_step(plan: RunPlan, *, alone: bool) -> StepBatches:
    """The step of a run with the batch in which the most is read; of a stream, the longest rows that are known.

    The rows of a step are dealt anew where several read it: there it is the step with the most.
    """
    batches, train = plan.batches, plan.data.train
    if isinstance(batches, StreamingSampler):
        rows = sorted(train, key=lambda row: -row.tokens)[: batches.batch_size * batches.accumulation]
        return StepBatches(chunks(rows, batches.batch_size), ends_epoch=False)

    def most(step: StepBatches) -> int:
        dealt = step.batches if alone or fills(plan.config) else [[row for rows in step.batches for row in rows]]
        return max(read_in(rows, plan.layout) for rows in dealt)

    return max(_steps(plan, batches), key=most)


def _steps(plan: RunPlan, batches: BatchSampler) -> Iterator[StepBatches]:
    """The steps of a run, of its first epoch at least."""
    epochs = takewhile(lambda epoch: epoch * len(plan.data.train) < LOOKED_AT, count())
    windows = (batches.windows(plan.data.train, epoch, 0, (0, 0)) for epoch in epochs)
    return islice(chain.from_iterable(windows), plan.steps)


def read_in(rows: Sequence[Example], layout: BatchLayout) -> int:
    """How many positions a batch of these rows has."""
    return layout.positions([row.tokens for row in rows])


def _in_words(rows: Sequence[Example]) -> str:
    return f"{counted(len(rows), 'row')}, {counted(sum(row.tokens for row in rows), 'token')}"


@contextmanager
def _put_back(run: Trainer) -> Iterator[None]:
    """Leave no gradient, a new optimizer, and modes and generators as they were; weights are put back at once."""
    modes, states = {module: module.training for module in run.loss.modules()}, rng_state()
    try:
        yield
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        run.optimizer = optimizer_of(run.adapted, run.plan.config)
        for module, mode in modes.items():
            module.training = mode
        restore_rng(states)


def _try_step(run: Trainer, prepared: PreparedStep, tried: Sequence[int], explained: Explained) -> None:
    """The gradient of the batches of these numbers beside the optimizer's state, and the update.

    Paged state gives way to what else needs memory, is never given back, and is therefore not made.
    """
    run.adapted.model.train()
    updates = not (KINDS[run.settings.optim].pages and has_own_memory(run.plan.placement.device))
    trainable = list(run.adapted.trainable.values())

    def backward() -> None:
        with explained():
            for number in tried:
                add_gradient(run, prepared, number)

    with explained():
        if updates:
            _update(run, {})
        _together(run, backward)
        run.sum_gradients()
        clip_grad_norm_(trainable, run.settings.max_grad_norm or math.inf)
        gradients = {parameter: parameter.grad for parameter in trainable if parameter.grad is not None}
        run.optimizer.zero_grad(set_to_none=True)
        if updates:
            _update(run, gradients)


def _together(run: Trainer, act: Callable[[], None]) -> None:
    """Have all ranks know where one fails; those that exchange weights all the while miss it as they do in a step."""
    if run.shards is None:
        run.ranks.together(act)
    else:
        act()


def _update(run: Trainer, gradients: Mapping[nn.Parameter, Tensor]) -> None:
    """An update by these gradients, or by zeros, after which the weights are what they were.

    It is made some weights at a time: optimizers leave alone what has no gradient.
    """
    for bucket in buckets(run.adapted.trainable.values()):
        before = [parameter.detach().clone() for parameter in bucket]
        for parameter in bucket:
            parameter.grad = gradients[parameter] if parameter in gradients else torch.zeros_like(parameter)
        run.optimizer.step()
        with torch.no_grad():
            for parameter, weight in zip(bucket, before, strict=True):
                parameter.copy_(weight)
        run.optimizer.zero_grad(set_to_none=True)


def _longest_evaluated(run: Trainer) -> list[Example]:
    """The evaluation batch in which the most is read; no rows where nothing is evaluated."""
    batches = chunks(run.plan.data.eval, run.settings.per_device_eval_batch_size)
    return max(batches, key=lambda rows: read_in(rows, run.plan.layout), default=[])


def _try_evaluation(run: Trainer, rows: Sequence[Example], explained: Explained) -> None:
    if not rows:
        return
    run.adapted.model.eval()

    def read() -> None:
        with explained():
            summed, _ = run.loss.with_decisions(run.batch(rows))
            summed.tolist()  # the device is done

    with torch.inference_mode(), run.gathered():
        _together(run, read)

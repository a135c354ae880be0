"""What is evaluated, opened by what its rows are: answers, classes, or pairs of answers of which one is better.

A pair is weighed by the loss that was trained with, and by the model as it was before training where that loss compares
with it: the base with the adapter switched off, or the adapter that training went on from, loaded beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch

from loraft.adapters.metadata import AdapterTarget, ResolvedTarget
from loraft.adapters.resolve_target import adapter_named
from loraft.config.preference_section import PreferenceSection
from loraft.config.schema import RunConfig
from loraft.errors import AdapterError, DataError
from loraft.evaluation.eval_dataset import EvalSource
from loraft.evaluation.evaluator import EvalModel, RowScore
from loraft.evaluation.open_model import (
    MEASURED,
    Opened,
    RequestedModel,
    asked,
    classifying,
    generating,
    to_be_told,
    writing,
)
from loraft.events import Observer, tell
from loraft.inference.engine import Settings
from loraft.inference.requests import GenerationRequest
from loraft.inference.session import BASE, Session, open_session
from loraft.models.modules import wrapped_model
from loraft.tasks import TASKS
from loraft.tasks.batches import BatchLayout
from loraft.tokenization.examples import Example

if TYPE_CHECKING:
    from loraft.tasks.preference_loss import PreferenceLoss

BEFORE = "before-training"
"""What the adapter is called, beside the one that is evaluated, that training went on from."""
MEASURED_BY_RUN = "The run measured pairs while it went on: its metrics.jsonl has those figures."


def opened(
    model: RequestedModel, source: EvalSource, options: GenerationRequest, batch_size: int, observer: Observer
) -> Opened:
    """The rows as tokens, and what is evaluated on them, and its base where that is wanted.

    Raises:
        InvalidInputError: It cannot be used, or cannot be measured on such rows.
    """
    if source.purpose.labels:
        return classifying(model, source, options, observer)
    if source.purpose.task.compares_answers:
        return _comparing(model, source, options, batch_size, observer)
    return generating(model, source, options, batch_size, observer)


def _comparing(
    model: RequestedModel, source: EvalSource, options: GenerationRequest, batch_size: int, observer: Observer
) -> Opened:
    """The pairs as tokens; what weighs their answers, and its base where that is wanted."""
    section = source.config.preference
    _refuse_single_answers(source, section)
    began = _began_with(source, model.found) if section.has_reference else None
    beside = model.found if began is None else replace(model.found, adapters=(*model.found.adapters, began))
    session = open_session(model.choice, beside)
    tell(observer, *session.notes, *_about(source, model.found))
    if began is None:
        tell(observer, *to_be_told(session, GenerationRequest(), MEASURED))
    before = BASE if began is None else began.name
    made = partial(weighing, session, before=before, config=source.config, batch_size=batch_size)
    return asked(session, source, options, observer, made)


def _refuse_single_answers(source: EvalSource, asked: PreferenceSection) -> None:
    """Refuse answers that stand alone, and pairs by a loss of such: what they are compared with is of many rows.

    Raises:
        DataError: There are some.
    """
    read = (*source.read.train, *source.read.held_out)
    alone = any(each.counts.format == "unpaired" for each in read)
    if alone or asked.loss == "kto":
        message = "the rows are single answers with a label, of which training alone tells the loss"
        if not alone:
            message = "the rows are pairs, and the model was trained by kto, which has no loss of pairs"
        remedy = "Name rows of prompt and completion alone; what the run measured: `loraft.report(RUN, quick=True)`."
        raise DataError(message, where=source.called, remedy=remedy)


def weighing(
    session: Session, name: str, settings: Settings, *, before: str, config: RunConfig, batch_size: int
) -> EvalModel:
    """The model of a session with the adapter of that name, or none for the base, as it is evaluated on pairs.

    `config` says by which loss, and `before` is the name of what that compares with, where it has a reference. Texts
    are read, and answers given, as `writing` has it.
    """
    plain, voice = writing(session, name, settings, batch_size), session.voice(name)
    placement, task = session.loaded.placement, TASKS[config.task]
    made = task.loss(wrapped_model(session.model), session.loaded.family, placement.autocast)
    settled = task.settled(made, config, partial(session.speaking, session.voice(before)))
    loss = cast("PreferenceLoss", settled)  # the task compares answers

    def read(examples: Sequence[Example]) -> Sequence[RowScore]:
        if not all(example.second for example in examples):
            return plain.read(examples)
        batch = task.collate(examples, BatchLayout()).to(placement.device)
        with session.speaking(voice), torch.inference_mode():
            losses, rewards = loss.of_pairs(batch)
        pairs = zip(losses.tolist(), rewards.tolist(), strict=True)
        return [RowScore(each, rewards=(chosen, rejected)) for each, (chosen, rejected) in pairs]

    return EvalModel(name, read, plain.answers)


def _began_with(source: EvalSource, found: ResolvedTarget) -> AdapterTarget | None:
    """The adapter that the evaluated one began as; None where that changed nothing of the base.

    Raises:
        AdapterError: What it was before training is not at hand.
    """
    if not found.adapters:
        message = f"{source.config.preference.loss} compares with the model as it was before training, which without "
        message += "an adapter to switch off is gone"
        raise AdapterError(message, where=found.base, remedy="Evaluate the adapter, or rows of one answer each.")
    config = source.config
    if config.lora.start_from is not None:
        remedy = "Put it back, or evaluate rows of one answer each. " + MEASURED_BY_RUN
        began = adapter_named(config.lora.start_from, {"key": "lora.start_from"}, remedy=remedy)
        return replace(began, name=BEFORE)
    if config.lora.init == "loftq" or config.model.add_tokens:
        key = "lora.init" if config.lora.init == "loftq" else "model.add_tokens"
        message = f"{config.preference.loss} compares with the model as it was before training, which began as another "
        message += "model than its base, and of that nothing was kept"
        raise AdapterError(message, key=key, remedy=MEASURED_BY_RUN)
    return None


def _about(source: EvalSource, found: ResolvedTarget) -> tuple[str, ...]:
    """What there is to say where no run is near that tells how pairs were compared."""
    if source.run is not None:
        return ()
    asked = source.config.preference
    called = found.adapters[0].name if found.adapters else found.base
    beside = ", and with the base" if asked.has_reference else ""
    by = f"{asked.loss} with beta {asked.strength:g}"
    return (f"no run says how {called} was trained: pairs are compared by {by}{beside}",)

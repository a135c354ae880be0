"""What goes on inside a model: activations while it reads a prompt, and gradients on a batch of a run's rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.inject import AdaptedModel
from loraft.adapters.resolve_target import classes_of, resolve_target, task_of
from loraft.adapters.save_adapter import restore
from loraft.config.choices import Method
from loraft.config.config_file import takes_path
from loraft.config.schema import RunConfig
from loraft.errors import AdapterError, DataError
from loraft.evaluation.open_model import MEASURED, RequestedModel, to_be_told
from loraft.events import ignored
from loraft.inference.decoder_state import products_in_model_dtype
from loraft.inference.engine import complete_batch
from loraft.inference.prompt_limits import prompt_limit
from loraft.inference.requests import AnyModel, GenerationRequest
from loraft.inspection.activations import LayerActivations, StackActivations, not_finite, watch_activations
from loraft.inspection.gradients import BatchGradients, batch_gradients
from loraft.io.resources import memory_errors
from loraft.models.device import select_device
from loraft.models.load_model import LoadedModel, load_model
from loraft.models.model_structure import family_in
from loraft.models.modules import decoder_inputs
from loraft.models.remote_code import as_trusted
from loraft.planning.run_plan import RunPlan, plan_run
from loraft.tasks import TASKS
from loraft.tokenization.boundaries import Pieces
from loraft.training.built_model import build_model
from loraft.training.embedding_noise import noisy_embeddings
from loraft.training.start_batches import begin_from_rows
from loraft.training.train_step import planned_loss

PROMPT = "the prompt"
"""What errors call it."""
ANSWER = GenerationRequest(max_new_tokens=32, temperature=0, num_beams=1)
"""What an encoder-decoder answers itself, so that its decoder has something to read."""
LOSS_SCALE = 2.0**16
"""Of float16, as loss scaling begins with."""


@dataclass(frozen=True)
class ActivationReport:
    """What went on in a model while it read a prompt.

    Attributes:
        read: What it read, special tokens spelled out.
        answer: What its decoder read besides an encoder's source: its own greedy answer; None without an encoder.
        first_token: The token that heads are said to look at where they look at the first.
        notes: What a person should know, a sentence each.
    """

    model: str
    read: str
    answer: str | None
    first_token: str
    stacks: tuple[StackActivations, ...]
    layers: tuple[LayerActivations, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        return asdict(self)


@dataclass(frozen=True)
class GradientReport:
    """The gradients of a run's first batch, before its first step or as it is trained.

    Attributes:
        trained: The folder of what was trained; None before the first step.
        rows: The rows of the batch, by their places.
        tokens: Its tokens, padding left out.
        targets: What its loss is divided by, in trained tokens or rows.
        notes: What a person should know, a sentence each.
    """

    model: str
    method: Method
    trained: str | None
    rows: tuple[str, ...]
    tokens: int
    targets: int
    gradients: BatchGradients
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        document = asdict(self)
        gradients: dict[str, Any] = document.pop("gradients")
        return document | gradients


@as_trusted
def inspect_activations(model: AnyModel, *, prompt: str) -> ActivationReport:
    """Tell what goes on in the layers of a model while it reads a prompt: sizes, and where each head looks.

    The prompt is read as `generate` would read it, or `predict` where the model tells classes.

    Args:
        model: What reads; a name alone is its target.
        prompt: What it reads.

    Raises:
        InvalidInputError: The target or the prompt cannot be used.
        OutOfMemoryError: The device is too small for the attention map of a layer.
    """
    requested = RequestedModel(model)
    if TASKS[task_of(requested.found)].generates:
        loaded, ids, answer, notes = _prompted(requested, prompt)
    else:
        loaded, ids, notes = _classified(requested, prompt)
        answer = []
    if not ids:
        raise DataError("it has no tokens", where=PROMPT, remedy="Give it at least one word.")
    inner, family = loaded.model, family_in(loaded.model)
    decoder_ids: list[int] = []
    if family.encoder_path is not None:
        decoder_ids = decoder_inputs(inner, torch.tensor([answer or [ids[-1]]], device=inner.device))[0].tolist()
    message = f"the device ran out of memory with {len(ids):,} tokens"
    with memory_errors(message, where=PROMPT, remedy="Give a shorter one."), products_in_model_dtype(inner):
        watch = watch_activations(inner, family, ids, decoder_ids)
    wrong = not_finite(watch.layers)
    return ActivationReport(
        model=loaded.name,
        read=str(loaded.tokenizer.decode(ids)),
        answer=str(loaded.tokenizer.decode(decoder_ids)) if decoder_ids else None,
        first_token=Pieces(loaded.tokenizer).of(ids[0]).text,
        stacks=tuple(watch.stacks),
        layers=tuple(watch.layers),
        notes=(*notes, *([wrong] if wrong else [])),
    )


def _prompted(requested: RequestedModel, prompt: str) -> tuple[LoadedModel, list[int], list[int], tuple[str, ...]]:
    """What answers, the tokens of its prompt, and those of its answer where a decoder must have something to read."""
    session = requested.session()
    voice = session.voice()
    asked = voice.conversation(prompt)
    ids = list(voice.renderer.prompt_ids(asked))
    most = prompt_limit(session.model)
    if most is not None and len(ids) > most:
        message = f"it has {len(ids):,} tokens, and this model has learned {most:,} positions"
        raise DataError(message, where=PROMPT, remedy=f"Shorten it to {most:,} tokens.")
    notes = (*session.notes, *to_be_told(session, ANSWER, MEASURED), *voice.about_prompts([asked]))
    answer: list[int] = []
    if ids and session.loaded.family.encoder_path is not None:
        (answered,) = complete_batch(session.model, voice.tokenizer, [ids], **voice.settings(ANSWER))
        answer = list(answered.token_ids)
    return session.loaded, ids, answer, notes


def _classified(requested: RequestedModel, text: str) -> tuple[LoadedModel, list[int], tuple[str, ...]]:
    """What tells classes, or an encoder that has no head for it yet, and the tokens of the text."""
    if classes_of(requested.found):
        classifier = requested.classifier(ignored)
        (tokens,) = classifier.tokens([(text, None)])
        cut = f"the text is longer than {classifier.limit}, and was cut to them"
        return (
            classifier.loaded,
            tokens.ids,
            (*classifier.notes, *classifier.about([(text, None)]), *([cut] if tokens.is_cut else [])),
        )
    found = requested.found
    loaded = load_model(found.model, select_device(found.model.section), group=None)
    return loaded, loaded.tokenizer(text)["input_ids"], (*found.notes, *loaded.notes)


@as_trusted
@takes_path
def inspect_gradients(
    config: RunConfig, *, trained: str | None = None, trust_remote_code: bool = False
) -> GradientReport:
    """Tell the gradients by layer of a run's first batch, as its first step would compute them; nothing is changed.

    Args:
        config: The run, or the path of its file.
        trained: The run, or a checkpoint or an adapter of it, that is looked at in place of what it begins with.
        trust_remote_code: Run the code that the model brings.

    Raises:
        InvalidInputError: With every problem found, as `train` refuses it; or what was trained is of another config.
        OutOfMemoryError: The device is too small.
    """
    plan = plan_run(config)
    remedy = "halve it and double training.gradient_accumulation_steps, or set training.gradient_checkpointing: true"
    message = f"{plan.placement.device_name} ran out of memory"
    with memory_errors(message, key="training.per_device_train_batch_size", remedy=remedy):
        return _gradients(plan, None if trained is None else _weights_of(trained, config))


def _weights_of(trained: str, config: RunConfig) -> Path:
    """The folder of what was trained."""
    found = resolve_target(trained)
    folder = found.adapter or Path(found.base)
    method = "an adapter" if found.adapters else "a model that was trained whole" if found.own.task else "a base"
    if method != ("a model that was trained whole" if config.method == "full" else "an adapter"):
        raise AdapterError(f"it is {method}, and the config's method is {config.method}", where=folder)
    return folder


def _as_trained(adapted: AdaptedModel, folder: Path) -> tuple[str, ...]:
    """Put into a planned model what was trained, and tell what there is to say about it."""
    try:
        notes = read_adapter(folder).check_base(adapted.loaded.fingerprint) if adapted.method != "full" else ()
        restore(adapted, folder)
    except AdapterError as error:
        message = f"it is not what the config trains: {error.in_short}"
        remedy = "Leave out what changes the model or its adapter."
        raise AdapterError(message, where=folder, remedy=remedy) from error
    return notes


def _gradients(plan: RunPlan, trained: Path | None) -> GradientReport:
    adapted = build_model(plan)
    loss = planned_loss(plan, adapted)
    if trained is None:
        begin_from_rows(plan, adapted, loss)
        about = plan.notes
    else:  # what there is to say of how the run begins is not so any more
        about = (*plan.placement.notes, *_as_trained(adapted, trained))
    adapted.set_training(True)
    window = next(plan.batches.windows(plan.data.train, 0, 0, (0, 0)))
    (first,) = plan.task.with_mismatched(window.batches[:1], plan.config)
    laid = plan.task.collate(first, plan.layout)
    weight, batch = loss.weight(laid), laid.to(plan.placement.device)
    if loss.compares_with_kl:
        loss.kl = loss.summed_kl(batch) / weight
    scale = LOSS_SCALE if plan.placement.dtype == torch.float16 else 1.0
    with noisy_embeddings(plan, adapted, window.batches[0]):
        found = batch_gradients(
            adapted.loaded.model, plan.shape.family, adapted.trainable, lambda: loss(batch) / weight, scale
        )
    rows = tuple(example.where for example in window.batches[0])
    name, notes = plan.config.model.name_or_path, (*about, *adapted.notes)
    folder = None if trained is None else str(trained)
    return GradientReport(name, plan.config.method, folder, rows, batch.tokens, batch.targets, found, notes)

"""A classifier, opened once and ready to tell the classes of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from loraft.adapters.effect import acting
from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.resolve_target import base_named_by, classes_of, resolve_target
from loraft.adapters.save_adapter import load_adapters
from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError, ModelError, NonFiniteError
from loraft.inference.requests import ModelRequest
from loraft.models.device import select_device
from loraft.models.hf_config import context_of
from loraft.models.load_model import LoadedModel, load_any_config, load_model
from loraft.models.modules import class_logits
from loraft.tasks.batches import BatchLayout, collate_labelled
from loraft.tasks.seq_cls import SequenceClassification
from loraft.tokenization.examples import Example
from loraft.tokenization.long_texts import ManyTokensError
from loraft.tokenization.plain_text_rows import ClassificationRenderer


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text or a pair, or of the beginning that fits, and of which text each is where a model asks."""

    ids: list[int]
    types: list[int] | None
    is_cut: bool


@dataclass(frozen=True, eq=False)
class Classifier:
    """An open classifier.

    Attributes:
        loaded: The base, with the adapter's layers in it where there is one.
        model: What is run: the base, or peft's wrapper around it.
        adapter: The adapter's folder; None for a model that classifies by itself.
    """

    loaded: LoadedModel
    model: nn.Module
    renderer: ClassificationRenderer
    adapter: Path | None
    name: str | None
    quantization: QuantizationSection | None
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes in their order."""
        return self.renderer.labels

    @property
    def context(self) -> int | None:
        """The positions that the model has; None where nothing limits it."""
        return context_of(self.loaded.model.config, self.loaded.family)

    @property
    def most(self) -> int | None:
        """The most tokens that it reads; None where nothing limits it."""
        return min((each for each in (self.context, self.renderer.cut_to) if each is not None), default=None)

    @property
    def limit(self) -> str:
        """What limits the tokens that it reads, in words."""
        if self.most == self.context:
            return f"the model's {self.context} positions"
        return f"the {self.most} tokens that training cut rows to"

    def about(self, texts: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
        """What there is to say about what is to be classified; control tokens are refused as they were in training."""
        found: dict[str, None] = {}
        for text, second in texts:
            self.renderer.control_tokens.refuse([text, second or ""])
            found |= dict.fromkeys(self.renderer.findings_in(text, second))
        return tuple(found)

    def tokens(self, texts: Sequence[tuple[str, str | None]]) -> list[TextTokens]:
        """Texts, or pairs of texts, as tokens: no more of each than was read in training, or the model has room for."""
        most = self.most
        if most is not None:
            try:
                texts = [self.renderer.beginnings(*text, most) for text in texts]
            except ManyTokensError as error:
                raise error.refusal from None
        read = self.renderer.text_ids(texts)
        long = [place for place, (ids, _) in enumerate(read) if most is not None and len(ids) > most]
        cut = dict(zip(long, self.renderer.text_ids([texts[place] for place in long], most), strict=True))
        return [TextTokens(*cut.get(place, whole), is_cut=place in cut) for place, whole in enumerate(read)]

    def scores(self, rows: Sequence[Example]) -> Tensor:
        """The scores of the classes for rows of tokens, whatever their labels are: `[rows, classes]`, on the CPU."""
        placement, tokenizer = self.loaded.placement, self.loaded.tokenizer
        pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        batch = collate_labelled(rows, BatchLayout(pad_id=pad_id)).to(placement.device)
        mixed = placement.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(placement.device, dtype=placement.dtype, enabled=mixed):
            assert batch.attention_mask is not None, "collate_labelled tells what is padding"
            read = batch.input_ids, batch.attention_mask, batch.token_type_ids
            return class_logits(self.loaded.model, self.loaded.family, *read).float().cpu()

    def speaking(self, *, base: bool = False) -> AbstractContextManager[nn.Module]:
        """The model with its adapter, or for a while without; afterwards as it was."""
        return acting(self.model, None if base else self.name)

    def probabilities(self, texts: Sequence[TextTokens]) -> list[dict[str, float]]:
        """The probability of each class for each text: softmax over the scores, if they are all numbers."""
        scores = self.scores([Example.of_class(text.ids, 0, "", text.types) for text in texts])
        if not scores.isfinite().all():
            remedy = "Compute in another `dtype`: float16 overflows in some models."
            raise NonFiniteError("the scores of the classes are not finite", parameter="target", remedy=remedy)
        return [dict(zip(self.labels, each, strict=True)) for each in scores.softmax(-1).tolist()]


def open_classifier(choice: ModelRequest, found: ResolvedTarget | None = None) -> Classifier:
    """Load what a choice means, if it tells classes; `found` is what it means, where that was found already."""
    found = found or resolve_target(choice.target, choice.adapters, base_model=choice.base_model)
    if len(found.adapters) > 1:
        raise AdapterError("one classifier tells classes, and there are several", parameter="adapters")
    section = found.model.section.model_copy(update={"dtype": choice.dtype} if choice.dtype else {})
    quantization = found.quantization if choice.quantize is None else choice.quantize
    with base_named_by(found):
        labels = classes_of(found)
        refuse_no_classifier(found, labels, choice.target)
        placed = select_device(section)
        loaded = load_model(found.model, placed, quantization=quantization, group="classifier", labels=labels)
    notes = (*found.notes, *loaded.notes)
    model: nn.Module = loaded.model
    if found.adapters:
        adapted = load_adapters(loaded, {each.name: each.folder for each in found.adapters})
        model, notes = adapted.model, (*notes, *adapted.notes)
    elif loaded.new_modules:
        lacks = " and ".join(loaded.new_modules)
        raise ModelError(f"its files lack {lacks}, and random numbers would answer", where=section.name_or_path)
    renderer = SequenceClassification().renderer_as_trained(loaded.tokenizer, replace(found.metadata, labels=labels))
    name = found.adapters[0].name if found.adapters else None
    return Classifier(loaded, model, renderer, found.adapter, name, quantization, notes)


def refuse_no_classifier(found: ResolvedTarget, labels: Sequence[str], target: str | None) -> None:
    """Refuse what does not tell one of several classes, whose names are `labels`; `target` is as it was given.

    Softmax would make 100 % of the one number of a regression, and share one text among classes that all hold. Of two
    classes of one name one would get lost.
    """
    called = target or (str(found.adapter) if found.adapter else found.base)
    problem_type = load_any_config(found.model).problem_type if labels and not found.adapters else None
    remedy = "Use it with transformers, or train a head: task: seq_cls."
    if not labels and found.adapters and found.metadata.task is not None:
        message = f"{called} was trained for {found.metadata.task}: it writes text, and tells no classes"
        remedy = f"Let it answer: `loraft.generate({called!r}, prompt=TEXT)`"
    elif not labels:
        message = f"{called} has no head that tells classes"
        remedy = "Train one first: task: seq_cls. What writes text answers by `loraft.generate`."
    elif twice := sorted({name for name in labels if labels.count(name) > 1}):
        message = f"{called} has several classes of the name {', '.join(twice)}"
        remedy = "Give them names of their own: id2label in its config.json."
    elif len(labels) == 1 or problem_type == "regression":
        message = f"{called} gives a text a number, not one of several classes"
    elif problem_type == "multi_label_classification":
        message = f"several classes of {called} may hold of one text, and loraft tells one"
    else:
        return
    raise ModelError(message, parameter="target", remedy=remedy)

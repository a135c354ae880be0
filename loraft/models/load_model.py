"""The only door to base models: each is loaded frozen and whole, on the device that was selected.

What transformers only logs is an error here: tensors that are missing or have another shape, kinds of models that
loraft does not train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerBase as Tokenizer

from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import ModelError
from loraft.io.checksums import altered_settings, is_weights, refuse_altered, remade
from loraft.models.auto_model import class_of, from_pretrained, meta_model
from loraft.models.device import DeviceConfig
from loraft.models.hf_config import (
    check_dtype,
    class_names,
    code_notes,
    in_order,
    quietly_reading,
    read_config,
    written_config,
)
from loraft.models.modules import is_within
from loraft.models.quantize import compute_as_autocast_says, disable_cpu_4bit_repack, quantization_config
from loraft.models.registry import DECODERS, FAMILIES, ModelSpec, spec_of
from loraft.models.safetensors_index import check_weights, expected_tensors, fingerprint, header_of, read_headers
from loraft.models.sources import ModelHandle

Model = ModelSection | ModelHandle
"""A model by its section of a config, or as it was looked up already."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A base model, ready to be adapted.

    Attributes:
        model: Frozen, in eval mode, in `placement.dtype` (quantized modules apart), on `placement.device`.
        tokenizer: The model's own, or the one that the config names.
        family: Its row of the table of architectures.
        placement: Device and dtype.
        folder: Where its files are.
        name: What the config calls it.
        fingerprint: What tells it from another base of the same shape.
        new_modules: The modules of a classification head that the base lacks. All their numbers are zero, so that each
            class is as likely as another, until training begins them or an adapter brings them.
        notes: What the user should know, a sentence each.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    family: ModelSpec
    placement: DeviceConfig
    folder: Path
    name: str
    fingerprint: str
    notes: tuple[str, ...]
    new_modules: tuple[str, ...] = ()


def load_model(
    model: Model,
    placement: DeviceConfig,
    *,
    quantization: QuantizationSection | None = None,
    among: Mapping[str, ModelSpec] = DECODERS,
    labels: Sequence[str] = (),
) -> LoadedModel:
    """Load a base model and its tokenizer.

    Args:
        model: Which model, and how it attends: `attn_implementation: auto` is scaled-dot-product attention, or
            plain products for the families that transformers has no such attention for.
        placement: Device and dtype.
        quantization: How the linear modules are stored in 4 bits; None stores them in `placement.dtype`.
        among: The families that will do.
        labels: The classes of a classifier; none loads the model with the head that its family generates with.

    Raises:
        ModelError: The model or its tokenizer is absent, damaged, of a kind that will not do, or not for this dtype.
        OutOfMemoryError: The device is too small for the weights.
    """
    handle = ModelHandle.of(model)
    folder = handle.folder
    config = read_config(folder, handle.section.attn_implementation, among, labels)
    family = spec_of(config.model_type, among)
    check_dtype(family, placement.dtype)
    new, skeleton = missing_head_modules(folder, config, family) if labels else (), meta_model(config)
    check_weights(folder, drop_modules(new, expected_tensors(skeleton)))
    refuse_altered(folder, is_weights, ModelError)
    tokenizer, notes = _tokenizer(handle, config)
    if labels:
        config.pad_token_id = tokenizer.pad_token_id
    options = {
        "config": config,
        "dtype": placement.dtype,
        "device_map": {"": placement.device} if placement.device != "cpu" else None,
        "quantization_config": quantization_config(quantization, placement, skeleton) if quantization else None,
    }
    return LoadedModel(
        model=_frozen(from_pretrained(class_of(config), folder, options, new), new),
        tokenizer=tokenizer,
        family=family,
        placement=placement,
        folder=folder,
        name=handle.section.name_or_path,
        fingerprint=fingerprint(folder),
        notes=(*placement.notes, *notes),
        new_modules=new,
    )


def _frozen(model: PreTrainedModel, new: Sequence[str]) -> PreTrainedModel:
    """The model as it is handed on: nothing trains yet, 4-bit modules are safe to train, and what is new is zero."""
    disable_cpu_4bit_repack(model)
    compute_as_autocast_says(model)
    model.requires_grad_(False)
    for parameter in (each for module in new for each in model.get_submodule(module).parameters()):
        parameter.zero_()
    return model


def load_config(
    model: Model, among: Mapping[str, ModelSpec] = DECODERS, labels: Sequence[str] = ()
) -> PreTrainedConfig:
    """The model's config, of a family that will do, with the attention that is asked for; no weights are fetched.

    With `labels` it is the config of a classifier of these classes.

    Raises:
        ModelError: No such model, or a kind that will not do.
    """
    handle = ModelHandle.of(model)
    return read_config(handle.small_files, handle.section.attn_implementation, among, labels)


def load_any_config(model: Model) -> PreTrainedConfig:
    """The config of any model that transformers knows, to be looked at: whatever its family, its head and its storage.

    Raises:
        ModelError: No such model, or a config that transformers cannot read.
    """
    folder = ModelHandle.of(model).small_files
    file = folder / "config.json"
    written_config(file)
    with quietly_reading(file):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return cast("PreTrainedConfig", config)


def load_tokenizer(model: Model, among: Mapping[str, ModelSpec] = DECODERS) -> Tokenizer:
    """The tokenizer that the config names, or the model's own; with offsets, and with padding where it can have it.

    Raises:
        ModelError: No tokenizer, one without offsets, or one with tokens beyond the model's embeddings.
    """
    return load_noted_tokenizer(model, among)[0]


def load_noted_tokenizer(model: Model, among: Mapping[str, ModelSpec] = DECODERS) -> tuple[Tokenizer, tuple[str, ...]]:
    """`load_tokenizer`, and what there is to say about it: a token that stands in for padding, say.

    Raises:
        ModelError: As `load_tokenizer` does.
    """
    handle = ModelHandle.of(model)
    return _tokenizer(handle, load_config(handle, among))


def missing_head_modules(folder: Path, config: PreTrainedConfig, family: ModelSpec) -> tuple[str, ...]:
    """The modules of a classifier's head that are new: those that the files lack.

    The one that decides between the classes is new too where the files have it for other classes: it would begin with
    what is right for others. Of two classes that have transformers' own names, `LABEL_0` and `LABEL_1`, a config.json
    says nothing.

    Args:
        folder: The base's files.
        config: The classifier's config.
        family: Its row of the table.
    """
    headers = read_headers(folder)
    expected = expected_tensors(meta_model(config))
    named = written_config(folder / "config.json").get("id2label")
    known = in_order(named) if isinstance(named, Mapping) else class_names(PreTrainedConfig())
    other_classes = known != class_names(config)
    return tuple(
        module
        for module in family.classifier
        if (other_classes and module == family.classifier[-1])
        or any(header_of(name, headers) is None for name in expected if is_within(name, module))
    )


def drop_modules(modules: Sequence[str], tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors that are in none of `modules`."""
    return {name: shape for name, shape in tensors.items() if not any(is_within(name, m) for m in modules)}


def _tokenizer(handle: ModelHandle, config: PreTrainedConfig) -> tuple[Tokenizer, tuple[str, ...]]:
    name, folder = handle.section.tokenizer or handle.section.name_or_path, handle.tokenizer_folder
    offsets = FAMILIES[config.model_type].kind == "decoder"
    tokenizer, notes = read_tokenizer(folder, name=name, embeddings=config.vocab_size, offsets=offsets)
    model = handle.small_files
    return tokenizer, (*remade(), *altered_settings(model), *notes, *code_notes(model, folder))


FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Where a tokenizer's vocabulary is; without one of them transformers makes up an empty tokenizer."""


def read_tokenizer(
    folder: Path, *, name: str, embeddings: int, offsets: bool = True
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer in a folder, and what there is to say about it.

    Where it has no padding token its end-of-text token stands in: labels never derive from padding.

    Args:
        folder: Its folder.
        name: What the config calls it, for errors.
        embeddings: The rows of the model's embeddings.
        offsets: It must tell where in a text each token is: prompts and answers are one text. Marian's and M2M100's
            tokenizers cannot, and sources and targets are tokenized apart.

    Raises:
        ModelError: No tokenizer, one without offsets that are needed, or one with tokens beyond the embeddings.
    """
    if not any((folder / file).is_file() for file in FILES):
        raise ModelError("there is no tokenizer", where=name, remedy="Name the one to use in model.tokenizer.")
    with quietly_reading(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if offsets and not tokenizer.is_fast:
        raise ModelError("the tokenizer gives no offsets, and the loss mask needs them", where=name)
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= embeddings:
        raise ModelError(
            f"the tokenizer has tokens up to id {last}, and the model has {embeddings} embeddings",
            where=name,
            remedy="Use the tokenizer that the model was trained with.",
        )
    return tokenizer, _give_padding(tokenizer)


def _give_padding(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    stand_in = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is not None or stand_in is None:
        return ()
    tokenizer.pad_token = stand_in
    return (f"the tokenizer has no padding token: {stand_in} stands in, and no label depends on it",)

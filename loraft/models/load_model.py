"""The only door to base models: each is loaded frozen and whole, on the device that was selected.

What transformers only logs is an error here: tensors that are missing or have another shape, kinds of models that
loraft does not train.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from loraft.config.choices import ModelGroup
from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import ModelError
from loraft.io.checksums import altered_settings, is_weights, refuse_altered, remade
from loraft.kernels.layer_stream import Fed, LayerStream
from loraft.models.auto_model import class_of, from_pretrained
from loraft.models.base_files import ModelInFiles, base_files, require_tensors, unpacked_tensors
from loraft.models.device import DeviceConfig, own_device
from loraft.models.hf_config import (
    AUTO_MAP,
    CLASSIFIER,
    check_dtype,
    code_notes,
    quietly_reading,
    refuse_code_of_others,
    written_config,
)
from loraft.models.model_structure import add_tokens, ends_of, grow, ids_of, layers_of
from loraft.models.modules import clear, mark_text
from loraft.models.probe import spec_of
from loraft.models.quantize import cast_others, compute_dtype, experts_in_4_bits, make_trainable, quantization_config
from loraft.models.registry import ModelSpec
from loraft.models.remote_code import is_trusted
from loraft.models.safetensors_index import fingerprint
from loraft.models.sources import ModelHandle
from loraft.models.stored_weights import (
    IN_INT32,
    KEY,
    StoredWeights,
    loading_as_stored,
    refuse_another_quantization,
    require_readable,
    stored_weights,
)

Model = ModelSection | ModelHandle
"""A model by its section of a config, or as it was looked up already."""
OTHER_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM")
"""Parts of the names of architectures that share a model_type with a language model and are none."""
FILES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json")
"""Where a tokenizer's vocabulary is; without one of them transformers makes up an empty tokenizer."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A base model, ready to be adapted.

    Attributes:
        model: Frozen, in eval mode, in `placement.dtype` (quantized modules apart), on `placement.device`.
        name: What the config calls it.
        fingerprint: What tells it from another base of the same shape.
        new_modules: The modules of a classification head that the base lacks. All their numbers are zero, so that each
            class is as likely as another, until training begins them or an adapter brings them.
        stored: How the files hold the weights, where these are quantized.
        own_rows: How many embeddings its files have; None is as many as the model.
        new_tokens: The ids of the tokens that `model.add_tokens` added, whose rows training begins.
        stream: What feeds the layers to the device, where they lie on the host.
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
    stored: StoredWeights | None = None
    own_rows: int | None = None
    new_tokens: tuple[int, ...] = ()
    stream: LayerStream | None = None


def load_model(
    model: Model,
    placement: DeviceConfig,
    *,
    quantization: QuantizationSection | None = None,
    group: ModelGroup | None = "decoder",
    labels: Sequence[str] = (),
    streamed: Fed | None = None,
) -> LoadedModel:
    """Load a base model and its tokenizer.

    Args:
        model: Which model, and how it attends: `attn_implementation: auto` is scaled-dot-product attention, or
            plain products for the families that transformers has no such attention for.
        placement: Device and dtype.
        quantization: How the linear modules are quantized; None stores them in `placement.dtype`. What the files hold
            quantized stays as it is, and nothing else can be asked for.
        group: What the model is used as; None is whatever it is.
        labels: The classes of a classifier; none loads the model with the head that its family generates with.
        streamed: What is left in the host's memory, from where it is fed to the device. That holds no more of it while
            loading than a tensor that it quantizes.

    Raises:
        ModelError: The model or its tokenizer is absent, damaged, of a kind that will not do, or not for this dtype.
        OutOfMemoryError: The device is too small for the weights.
    """
    handle = ModelHandle.of(model)
    folder = handle.folder
    config = load_config(handle, group, labels)
    family, stored = spec_of(config, group), stored_in(handle)
    check_dtype(family, placement.dtype)
    refuse_another_quantization(stored, quantization)
    base = base_files(config, folder)
    new = require_tensors(base, labels).new
    refuse_altered(folder, is_weights, ModelError)
    tokenizer, notes = load_noted_tokenizer(handle, group, config)
    if labels:
        config.pad_token_id = tokenizer.pad_token_id
    loaded = _with_weights(base, config, stored, family, placement, quantization, new, to_host=streamed is not None)
    stream = _stream_of(loaded, family, placement, streamed)
    tokens = ids_of(tokenizer, handle.section.add_tokens)
    own_rows = grow(loaded, (*handle.tokens, *tokens)) if handle.tokens or tokens else None
    mark_text(loaded, family.text_mark)
    loaded.requires_grad_(False)
    clear(map(loaded.get_submodule, new))
    notes, name, own = (*placement.notes, *notes, *base.notes), handle.section.name_or_path, fingerprint(folder)
    return LoadedModel(
        loaded, tokenizer, family, placement, folder, name, own, notes, new, stored, own_rows, tokens, stream
    )


def _stream_of(
    loaded: PreTrainedModel, family: ModelSpec, placement: DeviceConfig, streamed: Fed | None
) -> LayerStream | None:
    """What feeds a model that was loaded to the host to its device; None where it is there already."""
    if streamed is None:
        return None
    ends = ends_of(loaded) if streamed == "ends" else None
    return LayerStream(loaded, layers_of(loaded, family), torch.device(placement.device), ends)


def _with_weights(
    base: ModelInFiles,
    config: PreTrainedConfig,
    stored: StoredWeights | None,
    family: ModelSpec,
    placement: DeviceConfig,
    quantization: QuantizationSection | None,
    new: Sequence[str],
    *,
    to_host: bool,
) -> PreTrainedModel:
    """The model of a config with its files' weights, quantized while loading or as they are.

    `to_host` leaves them in the host's memory, quantized one after the other on the device.
    """
    asked = None
    own = own_device(placement)
    through, place = (own, "cpu") if to_host else (None, own)
    compute = compute_dtype(quantization, placement)
    if stored is not None:
        loading_as_stored(config, stored, compute)
    elif quantization is not None:
        experts = experts_in_4_bits(base.model, family, quantization)
        asked = quantization_config(quantization, compute, base.model, experts, through)
    options = {
        "config": config,
        "dtype": placement.dtype,
        "device_map": {"": place} if placement.device != "cpu" or to_host else None,
        "quantization_config": asked,
    }
    if stored is not None and stored.method in IN_INT32:
        options["state_dict"] = unpacked_tensors(base, placement.dtype)
    loaded = from_pretrained(class_of(config), base.folder, options, new)
    make_trainable(loaded, compute)
    if stored is not None:
        cast_others(loaded, placement.dtype)
    return loaded


def stored_in(model: Model) -> StoredWeights | None:
    """How the model's files hold its weights, where these are quantized."""
    return stored_weights(written_config(ModelHandle.of(model).small_files / "config.json"))


def load_config(model: Model, group: ModelGroup | None = "decoder", labels: Sequence[str] = ()) -> PreTrainedConfig:
    """The model's config, of a family that will do, with the attention that is asked for; no weights are fetched.

    With `labels` it is the config of a classifier of these classes.

    Raises:
        ModelError: No such model, or a kind that will not do.
    """
    handle = ModelHandle.of(model)
    file = handle.small_files / "config.json"
    written = written_config(file)
    _require_known(written, file)
    for architecture in written.get("architectures") or ():
        if group == "decoder" and any(head in architecture for head in OTHER_HEADS):
            remedy = "A classifier is trained by task: seq_cls, and answers by `loraft.predict`."
            if CLASSIFIER not in architecture:
                remedy = "Name a model with the head of a language model (…ForCausalLM)."
            message = f"the model is a {architecture}, which writes no text"
            raise ModelError(message, where=file, remedy=remedy)
    require_readable(file)
    attention = handle.section.attn_implementation
    config = _read_config(file, **({} if attention == "auto" else {"attn_implementation": attention}))
    if labels:
        config.architectures = [CLASSIFIER]
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
    spec_of(config, group)
    return config


def load_any_config(model: Model) -> PreTrainedConfig:
    """The config of any model that transformers knows, to be looked at: whatever its family, its head and its storage.

    Raises:
        ModelError: No such model, or a config that transformers cannot read.
    """
    file = ModelHandle.of(model).small_files / "config.json"
    _require_known(written_config(file), file)
    return _read_config(file)


def _require_known(written: Mapping[str, Any], file: Path) -> None:
    model_type = str(written["model_type"])
    brings = "AutoConfig" in (written.get(AUTO_MAP) or {})
    if is_trusted():
        refuse_code_of_others(file.parent)
    if model_type in CONFIG_MAPPING or (brings and is_trusted()):
        return
    remedy = "A newer version of transformers may know it."
    if brings:
        remedy = (
            "It brings code of its own: `trust_remote_code=True` runs it, with all that you may do on this machine."
        )
    elif near := difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=1, cutoff=0.75):
        remedy = f"The nearest that it knows is {near[0]}."
    raise ModelError(f"model type {model_type!r} is not one that transformers knows", where=file, remedy=remedy)


def _read_config(file: Path, **chosen: str) -> PreTrainedConfig:
    with quietly_reading(file):
        trusted = is_trusted()
        config = AutoConfig.from_pretrained(file.parent, local_files_only=True, trust_remote_code=trusted, **chosen)
    for key, is_used in ((AUTO_MAP, trusted), (KEY, getattr(config, KEY, None))):  # transformers reads an empty KEY too
        if hasattr(config, key) and not is_used:
            delattr(config, key)
    return cast("PreTrainedConfig", config)


def load_tokenizer(model: Model, group: ModelGroup | None = "decoder") -> Tokenizer:
    """The tokenizer that the config names, or the model's own; with offsets, and with padding where it can have it.

    Raises:
        ModelError: No tokenizer, one without offsets, or one with tokens beyond the model's embeddings.
    """
    return load_noted_tokenizer(model, group)[0]


def load_noted_tokenizer(
    model: Model, group: ModelGroup | None = "decoder", config: PreTrainedConfig | None = None
) -> tuple[Tokenizer, tuple[str, ...]]:
    """`load_tokenizer`, and what there is to say about it: a token that stands in for padding, say.

    `config` is the model's, where it is known.
    """
    handle = ModelHandle.of(model)
    config = config or load_config(handle, group)
    name, folder = handle.section.tokenizer or handle.section.name_or_path, handle.tokenizer_folder
    if not any(file for pattern in FILES for file in folder.glob(pattern)):
        raise ModelError("there is no tokenizer", where=name, remedy="Name the one to use in model.tokenizer.")
    if trusted := is_trusted():
        refuse_code_of_others(folder)
    with quietly_reading(folder):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    # Prompts and answers of a decoder are one text. Marian's and M2M100's tokenizers have no offsets, and need none:
    # sources and targets are tokenized apart.
    if spec_of(config, group).kind == "decoder" and not tokenizer.is_fast:
        raise ModelError("the tokenizer gives no offsets, and the loss mask needs them", where=name)
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= (embeddings := max(config.get_text_config().vocab_size, 1 + max(handle.tokens, default=-1))):
        raise ModelError(
            f"the tokenizer has tokens up to id {last}, and the model has {embeddings} embeddings",
            where=name,
            remedy="Use the tokenizer that the model was trained with; model.add_tokens adds tokens to it.",
        )
    add_tokens(tokenizer, handle.section.add_tokens)
    notes = [*remade(), *altered_settings(handle.small_files)]
    stand_in = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None and stand_in is not None:
        tokenizer.pad_token = stand_in
        notes.append(f"the tokenizer has no padding token: {stand_in} stands in, and no label depends on it")
    return tokenizer, (*notes, *code_notes(handle.small_files, folder))

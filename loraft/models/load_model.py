"""The only door to base models: each is loaded frozen and whole, on the device that was selected.

What transformers only logs is an error here: tensors that are missing or have another shape, kinds of models that
loraft does not train.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.pytorch_utils import Conv1D

from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import ModelError, OutOfMemoryError
from loraft.grammar import counted
from loraft.io.build_once import remade
from loraft.io.checksums import altered_settings, is_weights, refuse_altered
from loraft.models.device import DeviceConfig
from loraft.models.foreign_code import code_notes
from loraft.models.hf_config import (
    check_dtype,
    class_names,
    in_order,
    is_classifier,
    load_config,
    read_config,
    written_config,
)
from loraft.models.hf_logging import quietly_reading
from loraft.models.quantize import compute_as_autocast_says, disable_cpu_4bit_repack, quantization_config
from loraft.models.registry import DECODERS, FAMILIES, ModelSpec, spec_of
from loraft.models.safetensors_index import check_weights, expected_tensors, fingerprint, header_of, read_headers
from loraft.models.sources import resolve, resolve_tokenizer
from loraft.models.tokenizer import read_tokenizer

ENCODER_HEADS = {
    "SequenceClassification": AutoModelForSequenceClassification,
    "MaskedLM": AutoModelForMaskedLM,
    "PreTraining": AutoModelForMaskedLM,
}
"""The classes of transformers for an encoder, by a part of the name of its architecture."""


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
    section: ModelSection,
    placement: DeviceConfig,
    *,
    quantization: QuantizationSection | None = None,
    among: Mapping[str, ModelSpec] = DECODERS,
    labels: Sequence[str] = (),
) -> LoadedModel:
    """Load a base model and its tokenizer.

    Args:
        section: Which model, and how it attends: `attn_implementation: auto` is scaled-dot-product attention, or
            plain products for the families that transformers has no such attention for.
        placement: Device and dtype.
        quantization: How the linear modules are stored in 4 bits; None stores them in `placement.dtype`.
        among: The families that will do.
        labels: The classes of a classifier; none loads the model with the head that its family generates with.

    Raises:
        ModelError: No such model, a kind that will not do, damaged files, missing tensors, a tokenizer that does
            not fit, or a dtype that the family's activations exceed.
        OutOfMemoryError: The device is too small for the weights.
    """
    folder = resolve(section.name_or_path, section.revision)
    config = read_config(folder, section.attn_implementation, among, labels)
    family = spec_of(config.model_type, among)
    check_dtype(family, placement.dtype)
    new = missing_head_modules(folder, config, family) if labels else ()
    skeleton = meta_model(config)
    check_weights(folder, drop_modules(new, expected_tensors(skeleton)))
    refuse_altered(folder, is_weights, ModelError)
    tokenizer, notes = _tokenizer(section, config)
    if labels:
        config.pad_token_id = tokenizer.pad_token_id
    options = {
        "config": config,
        "dtype": placement.dtype,
        "device_map": {"": placement.device} if placement.device != "cpu" else None,
        "quantization_config": quantization_config(quantization, placement, skeleton) if quantization else None,
    }
    model = _from_pretrained(_class_of(config), folder, options, new)
    disable_cpu_4bit_repack(model)
    compute_as_autocast_says(model)
    model.requires_grad_(False)
    for parameter in (each for module in new for each in model.get_submodule(module).parameters()):
        parameter.zero_()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        family=family,
        placement=placement,
        folder=folder,
        name=section.name_or_path,
        fingerprint=fingerprint(folder),
        notes=(*placement.notes, *notes),
        new_modules=new,
    )


def load_tokenizer(section: ModelSection, among: Mapping[str, ModelSpec] = DECODERS) -> Tokenizer:
    """The tokenizer that the config names, or the model's own; with offsets, and with padding where it can have it.

    Raises:
        ModelError: No tokenizer, one without offsets, or one with tokens beyond the model's embeddings.
    """
    return load_noted_tokenizer(section, among)[0]


def load_noted_tokenizer(
    section: ModelSection, among: Mapping[str, ModelSpec] = DECODERS
) -> tuple[Tokenizer, tuple[str, ...]]:
    """`load_tokenizer`, and what there is to say about it: a token that stands in for padding, say.

    Raises:
        ModelError: As `load_tokenizer` does.
    """
    return _tokenizer(section, load_config(section, among))


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config on the meta device: shapes and names without memory.

    Raises:
        ModelError: The config's sizes make no model, or the family has no such attention.
    """
    with quietly_reading(Path("config.json")), torch.device("meta"):
        return _from_config(copy.deepcopy(config))


def random_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """The model of a config on the CPU in float32, with seeded random weights and attention by plain products.

    Raises:
        ModelError: The config's sizes make no model.
    """
    with quietly_reading(Path("config.json")), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = _from_config(config, dtype=torch.float32, **plain)
    model.train(False)
    return model


def _from_config(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    made_by = _class_of(config)
    make = made_by._from_config if issubclass(made_by, PreTrainedModel) else made_by.from_config
    return cast("PreTrainedModel", make(config, **options))


def _class_of(config: PreTrainedConfig) -> Any:
    """The class of transformers that makes the model of a config: with the head that its family is used with.

    An encoder is used with many heads, so its config says which; without one that is known it has none. A family that
    is not in the table is made by the class that its config names.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        named_class = getattr(transformers, (config.architectures or [""])[0], None)
        is_model = isinstance(named_class, type) and issubclass(named_class, PreTrainedModel)
        return named_class if is_model else AutoModel
    named = " ".join(config.architectures or ())
    if family.kind == "decoder":
        return AutoModelForSequenceClassification if is_classifier(config) else AutoModelForCausalLM
    if family.kind == "encoder_decoder":
        return AutoModelForSeq2SeqLM
    return next((made for head, made in ENCODER_HEADS.items() if head in named), AutoModel)


def read_gguf(file: Path) -> PreTrainedModel:
    """The model in a .gguf file, unpacked to float32.

    Raises:
        ModelError: An architecture that is not in the table, or one that transformers cannot read from .gguf.
    """
    with quietly_reading(file):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    spec_of(config.model_type)
    options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    with redirect_stderr(io.StringIO()):  # its progress bar for .gguf files has no other switch
        return _from_pretrained(_class_of(config), file.parent, options)


def linear_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear module, the head too: (inputs, outputs) by full name; a 4-bit one has the sizes it stands for."""
    return {name: _sizes(part) for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}


def _sizes(module: nn.Linear | Conv1D) -> tuple[int, int]:
    if isinstance(module, Conv1D):  # GPT-2's weight is [inputs, outputs]
        inputs, outputs = module.weight.shape
        return inputs, outputs
    return module.in_features, module.out_features


def parameter_count(model: nn.Module) -> int:
    """The numbers that a model holds: tied ones once, 4-bit ones by what they stand for."""
    packed = {
        id(module.weight): module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight.dtype == torch.uint8
    }
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())


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
        or any(header_of(name, headers) is None for name in expected if _is_inside(name, module))
    )


def _is_inside(name: str, module: str) -> bool:
    """Whether a tensor's name is that of one of the module's."""
    return name.startswith(f"{module}.")


def drop_modules(modules: Sequence[str], tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors that are in none of `modules`."""
    return {name: shape for name, shape in tensors.items() if not any(_is_inside(name, m) for m in modules)}


def _tokenizer(section: ModelSection, config: PreTrainedConfig) -> tuple[Tokenizer, tuple[str, ...]]:
    name = section.tokenizer or section.name_or_path
    folder = resolve_tokenizer(name) if section.tokenizer else resolve(name, section.revision, weights=False)
    offsets = FAMILIES[config.model_type].kind == "decoder"
    tokenizer, notes = read_tokenizer(folder, name=name, embeddings=config.vocab_size, offsets=offsets)
    model = resolve(section.name_or_path, section.revision, weights=False)
    return tokenizer, (*remade(), *altered_settings(model), *notes, *code_notes(model, folder))


def _from_pretrained(
    made_by: Any, folder: Path, options: Mapping[str, Any], new: Sequence[str] = ()
) -> PreTrainedModel:
    with quietly_reading(folder):
        try:
            model, report = made_by.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=bool(new),
                **options,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError("the weights do not fit into the memory of the device", where=str(folder)) from error
    absent = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    if lost := sorted(name for name in absent if not any(_is_inside(name, module) for module in new)):
        were = counted(len(lost), "tensor was", "tensors were")
        raise ModelError(f"{were} not loaded: {', '.join(lost[:8])}", where=str(folder))
    return cast("PreTrainedModel", model)

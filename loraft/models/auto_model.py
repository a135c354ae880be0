"""The only door to the model classes of transformers: from a config alone, from files, and out of a .gguf file."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    GenerationMixin,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    core_model_loading,
)
from transformers.utils import GENERATION_CONFIG_NAME

from loraft.config.choices import ModelGroup
from loraft.errors import ModelError
from loraft.figures import counted
from loraft.io.resources import memory_errors
from loraft.models.hf_config import is_classifier, is_used_otherwise, own_code, quietly_reading
from loraft.models.modules import is_within
from loraft.models.registry import FAMILIES, Kind, refuse_kind

ENCODER_HEADS = {
    "SequenceClassification": AutoModelForSequenceClassification,
    "MaskedLM": AutoModelForMaskedLM,
    "PreTraining": AutoModelForMaskedLM,
}
"""The classes of transformers for an encoder, by a part of the name of its architecture."""


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config on the meta device: shapes and names without memory.

    Raises:
        ModelError: The config's sizes make no model, or the family has no such attention.
    """
    with quietly_reading(Path("config.json")), torch.device("meta"):
        return _from_config(copy.deepcopy(config))


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config on the CPU in float32, with the same random weights each time and plain attention.

    Raises:
        ModelError: The config's sizes make no model.
    """
    with quietly_reading(Path("config.json")), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = _from_config(config, dtype=torch.float32, **plain)
    model.train(False)
    return model


def _from_config(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    made_by = class_of(config)
    if own_code(config):
        options["trust_remote_code"] = True
    make = made_by._from_config if issubclass(made_by, PreTrainedModel) else made_by.from_config
    return cast("PreTrainedModel", make(config, **options))


def class_of(config: PreTrainedConfig) -> Any:
    """The class of transformers that makes the model of a config: with the head that its family is used with.

    An encoder is used with many heads, so its config says which; without one that is known it has none. What is used
    in no way that loraft knows is made by the class that its config names.
    """
    family = FAMILIES.get(config.model_type)
    if family is not None and family.kind == "encoder" and not (own_code(config) or is_used_otherwise(config)):
        named = " ".join(config.architectures or ())
        return next((made for head, made in ENCODER_HEADS.items() if head in named), AutoModel)
    group = group_of(config)
    return (_auto_class(config, group) if group is not None else None) or _named_class(config) or AutoModel


CLASSES: Mapping[ModelGroup, tuple[Any, ...]] = {
    "decoder": (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM),
    "encoder_decoder": (AutoModelForSeq2SeqLM, AutoModelForImageTextToText),
    "classifier": (AutoModelForSequenceClassification,),
}
"""The classes of transformers that make models of a group; what reads images or sound writes text too."""


def _auto_class(config: PreTrainedConfig, group: ModelGroup) -> Any:
    """The class that makes a model of a config for a group; None where transformers has none."""
    if group != "classifier" and config.is_encoder_decoder != (group == "encoder_decoder"):
        return None
    code = own_code(config)
    made_by = next(
        (made for made in CLASSES[group] if made.__name__ in code or type(config) in made._model_mapping), None
    )
    if made_by is None and group == "decoder":
        named = _named_class(config)  # the text part of a larger model may have a class and stand in no list
        return named if named is not None and issubclass(named, GenerationMixin) else None
    return made_by


def _named_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that a config names."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    return named if isinstance(named, type) and issubclass(named, PreTrainedModel) else None


def group_of(config: PreTrainedConfig) -> ModelGroup | None:
    """What a model is used as, by its config alone; None of an encoder without a head that decides.

    A config that names no architecture is taken for a model that writes, where there is a class of such.
    """
    if is_classifier(config):
        return "classifier"
    named = config.architectures or ()
    if config.is_encoder_decoder:
        return "encoder_decoder"
    if any(head in architecture for architecture in named for head in NOT_WRITING):
        return None
    return "decoder" if _auto_class(config, "decoder") is not None else None


NOT_WRITING = ("MaskedLM", "PreTraining", "TokenClassification", "QuestionAnswering", "MultipleChoice")
"""Parts of the names of architectures that write no text."""


def require_class(config: PreTrainedConfig, group: ModelGroup) -> None:
    """Refuse an architecture that transformers has no class of for a group.

    Raises:
        ModelError: With the task that takes it, where there is one.
    """
    if _auto_class(config, group) is None:
        other = other_use(config, group)
        kind: Kind = "encoder_decoder" if config.is_encoder_decoder else "decoder" if other == "decoder" else "encoder"
        refuse_kind(config.model_type, kind, group, other)


def other_use(config: PreTrainedConfig, group: ModelGroup) -> ModelGroup | None:
    """What a model can be used as where it cannot be used as `group`; an encoder-decoder is not offered to classify."""
    uses = (each for each in CLASSES if each != group and _auto_class(config, each) is not None)
    return next((each for each in uses if each != "classifier" or not config.is_encoder_decoder), None)


def read_gguf(file: Path) -> PreTrainedModel:
    """The model in a .gguf file, unpacked to float32.

    Raises:
        ModelError: transformers cannot read it.
    """
    with quietly_reading(file):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    with redirect_stderr(io.StringIO()):  # its progress bar for .gguf files has no other switch
        return from_pretrained(class_of(config), file.parent, options)


def generation_defaults_in(folder: Path) -> GenerationConfig | None:
    """What generation_config.json in a folder says; None where there is none.

    Raises:
        ModelError: transformers cannot read it.
    """
    file = folder / GENERATION_CONFIG_NAME
    if not file.is_file():
        return None
    with quietly_reading(file):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def from_pretrained(made_by: Any, folder: Path, options: Mapping[str, Any], new: Sequence[str] = ()) -> PreTrainedModel:
    """Load a model by the class `made_by` from its files, which lack no tensor outside the modules `new`.

    Its tensors come from `state_dict` where the options have one.

    Raises:
        ModelError: The files cannot be read, or tensors are missing.
        OutOfMemoryError: The device is too small for the weights.
    """
    source: Path | None = folder
    if "state_dict" in options:  # the classes that choose another want a name
        made_by, source = type(meta_model(options["config"])), None
    message = "the weights do not fit into the memory of the device"
    less = "store it in 4 bits" if options.get("quantization_config") is None else "take a device with more memory"
    remedy = f"Use a smaller model, or {less}."
    with quietly_reading(folder), _raising_at_once(), memory_errors(message, where=folder, remedy=remedy):
        model, report = made_by.from_pretrained(
            source,
            local_files_only=True,
            trust_remote_code=bool(own_code(options["config"])) if "config" in options else False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(new),
            **options,
        )
    if "state_dict" in options and (defaults := generation_defaults_in(folder)) is not None:
        model.generation_config = defaults
    absent = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    if lost := sorted(name for name in absent if not is_within(name, *new)):
        were = counted(len(lost), "tensor was", "tensors were")
        raise ModelError(f"{were} not loaded: {', '.join(lost[:8])}", where=folder)
    return cast("PreTrainedModel", model)


@contextmanager
def _raising_at_once() -> Iterator[None]:
    """Have what fails while a tensor is converted or quantized raised: transformers would tell it in a log alone."""
    loading: Any = core_model_loading
    logs, loading.log_conversion_errors = loading.log_conversion_errors, lambda *_, **__: nullcontext()
    try:
        yield
    finally:
        loading.log_conversion_errors = logs

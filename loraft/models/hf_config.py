"""What a model is, by its config alone: its family, its head, its classes, how long a row may be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from logging import ERROR
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

from loraft.config.choices import ModelGroup
from loraft.errors import LoraftError, ModelError
from loraft.io.checksums import sha256_of_facts
from loraft.models.registry import FAMILIES, ModelSpec
from loraft.models.remote_code import is_trusted


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers; what matters of its logs, the caller asks for."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if verbosity != ERROR:  # setting it empties a cache in each logger that there is
        logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if verbosity != ERROR:
            logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def quietly_reading(path: Path) -> Iterator[None]:
    """Silence transformers while it reads `path`.

    Raises:
        ModelError: transformers cannot read `path`, with the first sentence of its reason.
    """
    with quietly():
        try:
            yield
        except LoraftError:
            raise
        except Exception as error:  # what it raises on files that are not as it expects has no common root
            raise ModelError(f"transformers cannot read it: {reason(error)}", where=path) from error


def reason(error: Exception) -> str:
    """The first sentence of an error, which may stand on two lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


AUTO_MAP = "auto_map"
FILES = ("config.json", "*_config.json")
RUN_BY = ("config.json", "tokenizer_config.json")
"""Of these the ones whose code runs here, if it is trusted."""
OF_THE_WRITER = frozenset({"_name_or_path", "transformers_version"})
"""What a config.json says of where it came from, and not of the model."""


def code_notes(*folders: Path) -> tuple[str, ...]:
    """A sentence about the files in folders that name code; none where none does."""
    found = dict.fromkeys(file.name for folder in folders for file, _ in _naming_code(folder))
    if not found:
        return ()
    ran, not_run = "it runs, as `trust_remote_code=True` lets it, and is not saved", "it is neither run nor saved"
    what = ran if is_trusted() else not_run
    return (f"the model brings code of its own ({AUTO_MAP} in {', '.join(found)}): {what}",)


def own_code(config: PreTrainedConfig) -> Mapping[str, str]:
    """The code that computes a model, by the class of transformers that it stands for; none where it is not trusted."""
    named = (getattr(config, AUTO_MAP, None) or {}) if is_trusted() else {}
    return {kind: place for kind, place in named.items() if kind.startswith("AutoModel")}


def refuse_code_of_others(folder: Path) -> None:
    """Refuse a folder whose model or tokenizer is computed by code of another model, which would run as this one's.

    Raises:
        ModelError: It is.
    """
    for file, values in _settings(folder):
        named = values.get(AUTO_MAP) if isinstance(values, dict) and file.name in RUN_BY else None
        each_kind = named.values() if isinstance(named, dict) else [named]
        places = chain.from_iterable(kind if isinstance(kind, list) else [kind] for kind in each_kind)
        if elsewhere := [place for place in places if isinstance(place, str) and "--" in place]:
            message = f"it names code of another model, {elsewhere[0]}, which is not run"
            raise ModelError(message, where=file, key=AUTO_MAP)


def copy_processors(base: Path, folder: Path) -> None:
    """Copy how images and sound are prepared: processors and servers of a multimodal model ask for it."""
    for file in base.glob("*processor_config.json"):
        shutil.copyfile(file, folder / file.name)


def drop_code(folder: Path) -> None:
    """Take code, and what names it, out of the files of a model that is being saved."""
    for file, clean in _naming_code(folder):
        file.write_text(json.dumps(clean, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in folder.glob("*.py"):  # transformers copies it beside what it saves
        file.unlink()


def _naming_code(folder: Path) -> Iterator[tuple[Path, object]]:
    """The files that name code, each with what else it says."""
    return ((file, clean) for file, values in _settings(folder) if (clean := _without(values)) != values)


def _settings(folder: Path) -> Iterator[tuple[Path, object]]:
    """The files of settings in a folder, each with what it says."""
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern)}):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # whoever needs the file tells that it cannot be read
        yield file, values


def _without(value: object) -> object:
    """A value without the key, at any depth: a model's parts have configs of their own."""
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key != AUTO_MAP}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


CLASSIFIER = "ForSequenceClassification"
"""What the architectures of classifiers are called, behind the family's name."""


def check_dtype(family: ModelSpec, dtype: torch.dtype | None) -> None:
    """Refuse float16 for the families that overflow in it; no dtype is not decided yet.

    Raises:
        ModelError: It is float16, and the family is not stable in it.
    """
    if dtype == torch.float16 and not family.stable_in_float16:
        raise ModelError(
            f"{family.model_type} is not stable in float16: its activations overflow",
            key="model.dtype",
            remedy="Write bfloat16, or float32 where the device has no bfloat16.",
        )


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether a config is that of a classifier of texts."""
    return any(CLASSIFIER in architecture for architecture in config.architectures or ())


def is_used_otherwise(config: PreTrainedConfig, group: ModelGroup | None = None) -> bool:
    """Whether a family of the table is used as what its row is not about: the decoder of a BART alone, say.

    Its config says so: an encoder-decoder's that it has one stack or classifies, an encoder's that it is a decoder.
    """
    known = FAMILIES.get(config.model_type)
    if known is None or group == "encoder_decoder":
        return False
    if group == "classifier" or (group is None and is_classifier(config)):
        return known.kind == "encoder_decoder"
    if known.kind == "encoder":
        named = " ".join(config.architectures or ())
        writes = group == "decoder" or "LMHead" in named or "CausalLM" in named
        return writes and bool(getattr(config, "is_decoder", False))
    return known.kind == "encoder_decoder" and not config.is_encoder_decoder


def class_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """The names of the classes of a classifier's config, in the order of its scores."""
    return in_order(config.id2label or {})


def in_order(id2label: Mapping[Any, object]) -> tuple[str, ...]:
    """The names by number: many a config.json has its numbers as texts in alphabetical order, 10 before 2."""
    return tuple(str(id2label[number]) for number in sorted(id2label, key=int))


def context_of(config: PreTrainedConfig, family: ModelSpec) -> int | None:
    """The longest row that a model's positions allow; None where nothing limits it."""
    positions = stretched_positions(config)
    return positions - family.spare_positions if positions is not None else None


def heads_in(config: PreTrainedConfig) -> int:
    """The attention's heads; the most of any layer where they differ, and 1 where there are none."""
    text = config.get_text_config()
    layers = (text.is_heterogeneous and text.per_layer_config) or [text]
    counts = [getattr(layer, "num_attention_heads", None) for layer in layers]
    return max((count for count in counts if isinstance(count, int)), default=1)


POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "max_decoder_position_embeddings")
"""What configs call the positions that a model was trained with."""


def configured_positions(config: PreTrainedConfig, *besides: str) -> int | None:
    """The positions that a model was trained with, as its config says, by one of `besides` perhaps; None where not."""
    return whole_number(config, *POSITIONS, *besides)


def whole_number(config: PreTrainedConfig, *names: str, least: int = 1) -> int | None:
    """The first of some settings of the part that reads text which is a whole number, and no smaller one."""
    text = config.get_text_config()
    said = (getattr(text, name, None) for name in names)
    return next((number for number in said if isinstance(number, int) and number >= least), None)


def stretched_positions(config: PreTrainedConfig) -> int | None:
    """The same, where rotary positions are scaled so many times as linear and dynamic scaling stretch them.

    What other kinds scale to is in the configured number.
    """
    configured = configured_positions(config)
    rotary = getattr(config.get_text_config(), "rope_parameters", None) or {}
    factor = rotary.get("factor") if rotary.get("rope_type") in ("linear", "dynamic") else None
    if configured is None or not isinstance(factor, int | float):
        return configured
    return int(configured * max(factor, 1))


def written_config(file: Path) -> Mapping[str, Any]:
    """The contents of a config.json, which has a model_type.

    Raises:
        ModelError: It has none.
    """
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        written["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError("is not a model's config: it has no model_type", where=file) from error
    return cast("Mapping[str, Any]", written)


def config_fingerprint(folder: Path) -> str:
    """A sha256 that tells two configs of one base apart: `sha256:…`; who wrote it, and by which name, is left out."""
    written = written_config(folder / "config.json")
    return f"sha256:{sha256_of_facts({key: written[key] for key in written.keys() - OF_THE_WRITER})}"


def noise_of(config: PreTrainedConfig) -> str | None:
    """The first setting that has the layers or the embeddings drop or shake numbers in training; None where none has.

    What is dropped before a classifier's head is none of it.
    """
    for name, value in config.get_text_config().to_dict().items():
        of_layers = ("drop" in name or "jitter" in name) and not name.startswith(("classifier", "summary", "cls"))
        if of_layers and isinstance(value, float) and value > 0:
            return name
    return None

"""What a folder of weights says of itself: the adapter or model in it, its base, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from loraft.config.choices import TASK_OF_GROUP, SpecialTokensInText, TaskName
from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import AdapterError
from loraft.io.atomic import read_json
from loraft.io.checksums import MERGE_REPORT, RECORD, is_weights, refuse_altered
from loraft.models.remote_code import is_trusted
from loraft.models.sources import ModelHandle
from loraft.tasks import TASKS
from loraft.tasks.training_metadata import SourceFormat, TrainingMetadata

PEFT_TASKS = {TASKS[name].peft_type: name for name in TASK_OF_GROUP.values()}
"""Our names of the tasks by peft's; of two that it calls alike the first."""


@dataclass(frozen=True)
class AdapterTarget:
    """An adapter, as its folder tells; what nobody recorded is None.

    Attributes:
        name: What it is called while it is in use.
        base: The base model that it names, as a config would; empty where it names none.
        revision: The base's revision on the Hub.
        fingerprint: What tells the base's weights from others.
        dtype: The dtype that the base had while it was trained.
        quantization: How the base was stored while it was trained, for `method: qlora`.
        tokenizer: The folder with the tokenizer that was trained with; None is the base's own.
        tokens: Those whose embeddings were trained by themselves; the base may have no row for them.
    """

    name: str
    folder: Path
    base: str
    revision: str | None = None
    fingerprint: str | None = None
    dtype: str | None = None
    quantization: QuantizationSection | None = None
    tokenizer: str | None = None
    tokens: tuple[int, ...] = ()
    metadata: TrainingMetadata = field(default_factory=TrainingMetadata)


@dataclass(frozen=True)
class ResolvedTarget:
    """What a command works on.

    Attributes:
        adapters: What is put on it, the one that answers first.
        own: How the model itself was trained, for `method: full` and what was merged.
        dtype: The dtype that it was trained in, for `method: full`.
        notes: What a person should know, one sentence each.
    """

    base: str
    revision: str | None = None
    adapters: tuple[AdapterTarget, ...] = ()
    own: TrainingMetadata = field(default_factory=TrainingMetadata)
    dtype: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter that answers, or None for a model without one."""
        return self.adapters[0].folder if self.adapters else None

    @property
    def quantization(self) -> QuantizationSection | None:
        """How the base was stored while the adapter was trained."""
        return self.adapters[0].quantization if self.adapters else None

    @property
    def metadata(self) -> TrainingMetadata:
        """How what answers was trained."""
        return self.adapters[0].metadata if self.adapters else self.own

    @cached_property
    def model(self) -> ModelHandle:
        """The base, with the tokenizer and the precision that were trained with; looked up once.

        What was trained in 16 bits runs in those that the device has.
        """
        first = self.adapters[0] if self.adapters else None
        trained_in = first.dtype if first else self.dtype
        dtype: Literal["float32", "auto"] = "float32" if trained_in == "float32" else "auto"
        tokenizer = first.tokenizer if first else None
        return ModelHandle(
            ModelSection(name_or_path=self.base, revision=self.revision, tokenizer=tokenizer, dtype=dtype),
            tuple(dict.fromkeys(token for adapter in self.adapters for token in adapter.tokens)),
        )


def adapter_in(folder: Path) -> ResolvedTarget:
    """The adapter in a folder, on the base that it names.

    Raises:
        AdapterError: What is written there cannot be read.
    """
    config, record = read_json(folder / "adapter_config.json"), _record(folder)
    known = _trained_on(record)
    if known.get("remote_code") is True and not is_trusted():
        message = "it was trained on a base that code of its own computes, and without that it is another model"
        remedy = "Let that code run, with all that you may do here: `trust_remote_code=True`."
        raise AdapterError(message, where=folder, remedy=remedy)
    try:
        stored: Any = record.get("quantization")
        # Before experts could be in 4 bits they never were.
        if isinstance(stored, Mapping):
            stored = {"experts": False, **stored}
        quantization = QuantizationSection.model_validate(stored) if stored else None
    except ValidationError as error:
        detail = error.errors()[0]["msg"]
        raise AdapterError(detail, where=folder / RECORD, key="quantization") from error
    adapter = AdapterTarget(
        name="default",
        folder=folder,
        base=_text(config, "base_model_name_or_path") or "",
        revision=_text(config, "revision"),
        fingerprint=_text(known, "fingerprint"),
        dtype=_text(known, "dtype"),
        quantization=quantization,
        tokenizer=str(folder) if (folder / "tokenizer_config.json").is_file() else None,
        tokens=_tokens(config.get("trainable_token_indices")),
        metadata=_metadata(config, record),
    )
    return ResolvedTarget(adapter.base, adapter.revision, (adapter,))


def model_in(folder: Path) -> ResolvedTarget:
    """The model in a folder: a base, or what was trained or merged and knows how.

    Raises:
        AdapterError: What is written there cannot be read.
    """
    record, notes = _record(folder), tuple[str, ...]()
    in_a_run = folder.name == "model" and (folder.parent / "config.yaml").is_file()
    if not record and (in_a_run or (folder / MERGE_REPORT).is_file()):
        notes = (f"{folder / RECORD} is missing: how it was trained is not known, nor whether its files are whole",)
    dtype = _text(_trained_on(record), "dtype") if record.get("method") == "full" else None
    return ResolvedTarget(str(folder), own=_metadata({}, record), dtype=dtype, notes=notes)


def metadata_in(folder: Path) -> TrainingMetadata:
    """How what lies in a folder was trained, as far as loraft recorded it there.

    Raises:
        AdapterError: What is written there cannot be read.
    """
    return _metadata({}, _record(folder))


def _record(folder: Path) -> dict[str, object]:
    """What loraft wrote beside the weights; nothing for a folder of another tool.

    Raises:
        AdapterError: It cannot be read, or a file that decides an answer is not what was written; weights are looked
            at when they are read.
    """
    if not (folder / RECORD).is_file():
        return {}
    record = read_json(folder / RECORD)
    refuse_altered(folder, lambda name: not is_weights(name), AdapterError)
    return record


def _trained_on(record: Mapping[str, object]) -> Mapping[str, object]:
    """What loraft recorded of the base."""
    base = record.get("base")
    return base if isinstance(base, dict) else {}


def _metadata(config: Mapping[str, object], record: Mapping[str, object]) -> TrainingMetadata:
    """How something was trained, as loraft recorded it; its task also as peft did."""
    named = record.get("task") or PEFT_TASKS.get(str(config.get("task_type")))
    labels, pairs, cut_to = record.get("labels"), record.get("pairs"), record.get("cut_to")
    return TrainingMetadata(
        task=next((task for task in get_args(TaskName) if task == named), None),
        system_prompt=_text(record, "system_prompt"),
        plain=record.get("plain") is True,
        special_tokens_in_text=next(
            (each for each in get_args(SpecialTokensInText) if each == record.get("special_tokens_in_text")), "text"
        ),
        labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        pairs=pairs if isinstance(pairs, bool) else None,
        cut_to=cut_to if isinstance(cut_to, int) and cut_to > 0 else None,
        sources=SourceFormat(
            _text(record, "source_prefix") or "", _text(record, "source_lang"), _text(record, "target_lang")
        ),
    )


def _tokens(indices: object) -> tuple[int, ...]:
    """The rows that peft's `trainable_token_indices` names; what is no number is told later."""
    lists = indices.values() if isinstance(indices, Mapping) else [indices]
    named = (row for rows in lists if isinstance(rows, list) for row in rows)
    return tuple(dict.fromkeys(row for row in named if isinstance(row, int)))


def _text(record: Mapping[str, object], key: str) -> str | None:
    value = record.get(key)
    return value if isinstance(value, str) else None

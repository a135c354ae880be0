"""An export from beginning to end, and what it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.errors import RunFolderError
from loraft.events import Observer, Progress
from loraft.exporting.gguf_tensors import OutType
from loraft.exporting.modelfile import NAME, modelfile
from loraft.exporting.prepare_adapter import prepare_adapter
from loraft.exporting.prepare_export import prepare_export
from loraft.exporting.write_gguf import new_file, refuse_taken_file
from loraft.io.atomic import write_whole
from loraft.merging.prepare_merge import BaseChoice


@dataclass(frozen=True)
class ExportReport:
    """What `export` made.

    Attributes:
        holds: A whole `model`, or an `adapter` alone.
        architecture: What llama.cpp calls the family.
        outtype: What matrices are written in.
        types: How many tensors are in each type.
        file_bytes: The size of the file.
        adapters: A `name` and a `weight` each; none where a base was exported.
        modelfile: Ollama's, where it was asked for.
        seconds: The time that writing took.
        warnings: What a person should know of the file, a sentence each.
    """

    out: Path
    holds: Literal["model", "adapter"]
    architecture: str
    outtype: OutType
    types: Mapping[str, int]
    file_bytes: int
    base_model: str
    adapters: tuple[Mapping[str, object], ...]
    modelfile: Path | None
    seconds: float
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        return asdict(self)


def write_export(
    target: ResolvedTarget,
    weights: Sequence[float],
    out: Path,
    outtype: OutType,
    base: BaseChoice | None,
    observer: Observer,
    *,
    adapter_only: bool,
    ollama: bool,
    overwrite: bool,
) -> ExportReport:
    """Write a base with its adapters folded in, or its one adapter alone; beside it Ollama's file where that is asked.

    Raises:
        InvalidInputError: Before anything is written: llama.cpp would compute another model, a file is there already.
        RunError: A number does not fit into the type, or memory or disk ran out; `out` is as it was.
    """
    refuse_taken_file(out, base=target.base, overwrite=overwrite)
    beside = out.with_name(NAME) if ollama else None
    if beside is not None and beside.exists() and (beside.is_dir() or not overwrite):
        raise RunFolderError("is there already", where=str(beside), remedy="Replace it by `overwrite`, or move it.")
    text = ""
    if adapter_only:
        file, merge = prepare_adapter(target, weights, outtype=outtype)
    else:
        prepared = prepare_export(target, weights, outtype=outtype, base=base)
        file, merge = prepared.file, prepared.merge
        if ollama:
            adds_start = bool(file.values["tokenizer.ggml.add_bos_token"])
            text = modelfile(prepared.speaker, prepared.rules, out.name, adds_start=adds_start)
    with new_file(out, file.num_bytes, "the GGUF file", base=target.base, overwrite=overwrite) as begun:
        began = monotonic()
        file.write(begun, lambda done, total: observer(Progress("bytes written", done, total)))
        seconds = monotonic() - began
    if beside is not None:
        write_whole(beside, text)
    return ExportReport(
        out=out,
        holds="adapter" if adapter_only else "model",
        architecture=str(file.values["general.architecture"]),
        outtype=outtype,
        types=dict(Counter(tensor.kind for tensor in file.tensors)),
        file_bytes=out.stat().st_size,
        base_model=shown(merge.target.base),
        adapters=tuple({"name": adapter.name, "weight": adapter.weight} for adapter in merge.adapters),
        modelfile=beside,
        seconds=round(seconds, 3),
        warnings=file.notes,
    )

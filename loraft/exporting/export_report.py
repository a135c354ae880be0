"""An export from beginning to end, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.errors import RunFolderError
from loraft.exporting.gguf_tensors import OutType
from loraft.exporting.modelfile import NAME, modelfile
from loraft.exporting.prepare_adapter import prepare_adapter
from loraft.exporting.prepare_export import prepare_export
from loraft.exporting.write_gguf import GgufFile, new_file, refuse_taken_file
from loraft.io.atomic import write_whole
from loraft.merging.prepare_merge import BaseChoice, Merge

Tell = Callable[[str, int, int], None]
"""Is told what goes on, how far it is, and how far it goes."""


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


def export_model(
    target: ResolvedTarget,
    weights: Sequence[float],
    out: Path,
    *,
    outtype: OutType,
    base: BaseChoice | None,
    ollama: bool,
    overwrite: bool,
    progress: Tell,
) -> ExportReport:
    """Write a base, with its adapters folded in, as one GGUF file.

    Raises:
        InvalidInputError: Before anything is written: llama.cpp would compute another model, a file is there already,
            the disk is too small.
        RunError: A number does not fit into the type, or the disk filled up; `out` is as it was.
    """
    refuse_taken_file(out, base=target.base, overwrite=overwrite)
    beside = out.with_name(NAME) if ollama else None
    if beside is not None and beside.exists() and (beside.is_dir() or not overwrite):
        raise RunFolderError("is there already", where=str(beside), remedy="Replace it by `overwrite`, or move it.")
    prepared = prepare_export(target, weights, outtype=outtype, base=base)
    adds_start = bool(prepared.file.values["tokenizer.ggml.add_bos_token"])
    text = modelfile(prepared.speaker, prepared.rules, out.name, adds_start=adds_start) if ollama else None
    seconds = _written(prepared.file, target, out, overwrite=overwrite, progress=progress)
    if beside is not None and text is not None:
        write_whole(beside, text)
    return _report(prepared.file, prepared.merge, out, "model", outtype, beside, seconds)


def export_adapter(
    target: ResolvedTarget, weights: Sequence[float], out: Path, *, outtype: OutType, overwrite: bool, progress: Tell
) -> ExportReport:
    """Write a target's one adapter as a GGUF file, for a base that llama.cpp has already.

    Raises:
        InvalidInputError: Before anything is written: it does more than llama.cpp's adapters, a file is there already.
        RunError: A number does not fit into the type, or the disk filled up; `out` is as it was.
    """
    refuse_taken_file(out, base=target.base, overwrite=overwrite)
    file, merge = prepare_adapter(target, weights, outtype=outtype)
    seconds = _written(file, target, out, overwrite=overwrite, progress=progress)
    return _report(file, merge, out, "adapter", outtype, None, seconds)


def _written(file: GgufFile, target: ResolvedTarget, out: Path, *, overwrite: bool, progress: Tell) -> float:
    """Write a file, and tell how long it took."""
    with new_file(out, file.num_bytes, "the GGUF file", base=target.base, overwrite=overwrite) as beside:
        began = monotonic()
        file.write(beside, partial(progress, "bytes written"))
        return monotonic() - began


def _report(
    file: GgufFile,
    merge: Merge,
    out: Path,
    holds: Literal["model", "adapter"],
    outtype: OutType,
    beside: Path | None,
    seconds: float,
) -> ExportReport:
    kinds = [tensor.kind for tensor in file.tensors]
    return ExportReport(
        out=out,
        holds=holds,
        architecture=str(file.values["general.architecture"]),
        outtype=outtype,
        types={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        file_bytes=out.stat().st_size,
        base_model=shown(merge.target.base),
        adapters=tuple({"name": adapter.name, "weight": adapter.weight} for adapter in merge.adapters),
        modelfile=beside,
        seconds=round(seconds, 3),
        warnings=file.notes,
    )

"""`loraft.export`: what was trained as a file for llama.cpp and what is built on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from loraft.adapters.model_card import shown
from loraft.errors import ConfigError, RunFolderError
from loraft.events import Observer, ignored
from loraft.exporting.gguf_tensors import OutType
from loraft.exporting.modelfile import NAME
from loraft.exporting.prepare_adapter import prepare_adapter
from loraft.exporting.prepare_export import prepare_export
from loraft.exporting.write_gguf import GgufFile, refuse_taken_file
from loraft.io.atomic import write_whole
from loraft.merging.prepare_merge import BaseChoice, Merge, resolve_weighted
from loraft.models.remote_code import as_trusted


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


@as_trusted
def export(
    target: str | None,
    out: str | Path,
    adapters: Sequence[str] = (),
    *,
    outtype: OutType = "f16",
    adapter_only: bool = False,
    ollama: bool = False,
    base: BaseChoice | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    observer: Observer = ignored,
) -> ExportReport:
    """Write a model, with its adapters folded in, as a GGUF file.

    Args:
        target: A base, an adapter, a run, a checkpoint or a config; or the base beside `adapters`.
        out: The .gguf file to write.
        adapters: Adapters to sum, `DIR=WEIGHT` or `DIR`.
        outtype: What matrices are written in.
        adapter_only: Write the adapter alone, for a base that llama.cpp has already.
        ollama: Write Ollama's Modelfile beside it.
        base: The base that adapters are folded into, as `loraft.merge` has it.
        base_model: The base to use, whatever the adapters name.
        overwrite: Replace the file that is there.
        trust_remote_code: Run the code that the model brings.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is written: llama.cpp would compute another model or split text otherwise, a
            file is there already, the disk is too small.
        RunError: A number does not fit into the type, or memory or disk ran out; `out` is as it was.
    """
    if adapter_only and (ollama or base is not None):
        message = f"`{'ollama' if ollama else 'base'}` is about a whole model, and `adapter_only` writes the adapter"
        raise ConfigError(message, remedy="Leave one of them out.")
    found, weights = resolve_weighted(target, adapters, base_model=base_model, alone=True)
    out = Path(out).expanduser()
    refuse_taken_file(out, base=found.base, overwrite=overwrite)
    beside, text = _modelfile_beside(out, overwrite=overwrite) if ollama else None, ""
    if adapter_only:
        file, merge = prepare_adapter(found, weights, outtype)
    else:
        file, merge, text = prepare_export(found, weights, outtype, base, out.name if ollama else None)
    began = monotonic()
    file.write(out, observer, base=found.base, overwrite=overwrite)
    if beside is not None:
        write_whole(beside, text)
    return _report(file, merge, out, outtype, beside, monotonic() - began)


def _modelfile_beside(out: Path, *, overwrite: bool) -> Path:
    beside = out.with_name(NAME)
    if beside.exists() and (beside.is_dir() or not overwrite):
        raise RunFolderError("is there already", where=beside, remedy="Replace it by `overwrite`, or move it.")
    return beside


def _report(
    file: GgufFile, merge: Merge, out: Path, outtype: OutType, modelfile: Path | None, seconds: float
) -> ExportReport:
    return ExportReport(
        out=out,
        holds="adapter" if file.values["general.type"] == "adapter" else "model",
        architecture=str(file.values["general.architecture"]),
        outtype=outtype,
        types=dict(Counter(tensor.kind for tensor in file.tensors)),
        file_bytes=out.stat().st_size,
        base_model=shown(merge.target.base),
        adapters=tuple({"name": adapter.name, "weight": adapter.weight} for adapter in merge.adapters),
        modelfile=modelfile,
        seconds=round(seconds, 3),
        warnings=file.notes,
    )

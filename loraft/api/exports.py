"""`loraft.export`: what was trained as a file for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraft.adapters.resolve_target import resolve_target
from loraft.errors import ConfigError
from loraft.events import Observer, ignored
from loraft.exporting.export_report import ExportReport, write_export
from loraft.exporting.gguf_tensors import OutType
from loraft.merging.prepare_merge import BaseChoice, resolve_weighted
from loraft.models.remote_code import as_trusted


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
    if adapters:
        found, weights = resolve_weighted(target, adapters, base_model=base_model)
    else:
        found = resolve_target(target, base_model=base_model)
        weights = (1.0,) * len(found.adapters)
    file = Path(out).expanduser()
    return write_export(
        found, weights, file, outtype, base, observer, adapter_only=adapter_only, ollama=ollama, overwrite=overwrite
    )

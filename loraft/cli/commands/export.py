"""`loraft export`: what was trained as a GGUF file, for llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraft import api
from loraft.cli.console import print_either, print_note
from loraft.cli.options import JsonOption, argument, flag, option, trust_flag
from loraft.cli.views.progress import watching
from loraft.cli.views.written_view import export_view


@dataclass(frozen=True)
class ExportOptions:
    """What is written, as what."""

    target: str = argument("TARGET", "A base, an adapter, a run, a checkpoint or a config; beside --adapter the base.")
    gguf: str = argument("OUT.gguf", "The file to write.")
    adapters: list[str] | None = option(
        "DIR[=WEIGHT]", "An adapter (folder, run, Hub id) and how much of it; several are summed.", "--adapter"
    )
    outtype: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = option(
        None, "What matrices are written in; in 4 and 5 bits the tables of the vocabulary are in 8.", default="f16"
    )
    adapter_only: bool = flag("Write the adapter alone, for a base that llama.cpp has already.")
    ollama: bool = flag("Write a Modelfile beside it, with the chat template, the system prompt and the stops.")
    base: Literal["original", "dequantized"] | None = option(
        None, "The base as its files have it, or as 4-bit training saw it [default: as trained]."
    )
    base_model: str | None = option("MODEL", "The base to use, whatever the adapter names.")
    trust_remote_code: bool = trust_flag()
    overwrite: bool = flag("Replace the files that are there.")


def export(given: ExportOptions, as_json: JsonOption = False) -> None:
    """Write a model as a GGUF file, for llama.cpp and Ollama.

    An adapter is folded in on the way, as merge does it, and each number is rounded once. What llama.cpp would compute
    otherwise than transformers is refused before anything is written.
    """
    with watching("export") as view:
        report = api.export(
            given.target,
            given.gguf,
            given.adapters or (),
            outtype=given.outtype,
            adapter_only=given.adapter_only,
            ollama=given.ollama,
            base=given.base,
            base_model=given.base_model,
            overwrite=given.overwrite,
            trust_remote_code=given.trust_remote_code,
            observer=view,
        )
    print_note(*report.warnings)
    told = report.as_dict()
    print_either(told, export_view(told), as_json=as_json)

"""`loraft convert`: a model whose weights are pickled, as one that loraft reads."""

from __future__ import annotations

from dataclasses import dataclass

from loraft import api
from loraft.cli.console import print_json, print_note, print_result
from loraft.cli.options import JsonOption, argument, option
from loraft.cli.text_tables import print_document
from loraft.cli.views.progress import watching


@dataclass(frozen=True)
class ConvertOptions:
    """What is converted, and to where."""

    source: str = argument("SRC", "A folder with pickled weights (.bin, .pt), such a file in one, or a Hub id.")
    out: str = argument("OUT", "The folder to write; nothing may be there.")
    revision: str | None = option("REVISION", "A branch, tag or commit of a Hub model.")


def convert(given: ConvertOptions, as_json: JsonOption = False) -> None:
    """Make safetensors of the pickled weights of a model or an adapter.

    A pickle can run code when it is opened. It is opened as tensors alone, in a process without network that starts no
    program, writes no other file and has bounds of memory and time; what was written is compared with what was read.
    Config, tokenizer and card are copied; code is not.
    """
    with watching("convert") as view:
        done = api.convert(**vars(given), observer=view)
    print_note(*done.notes)
    if as_json:
        print_json(done.as_dict())
        return
    facts: dict[str, object] = {"folder": str(done.out), "tensors": done.tensors, "bytes": done.bytes}
    if done.tied:
        facts["tied"] = f"{', '.join(done.tied)}: written once, as the tensor that transformers ties to it"
    if done.left:
        facts["left out"] = ", ".join(done.left)
    print_document(
        {**facts, "files": [{"file": name, "bytes": size} for name, size in done.files.items()]}, rest="model"
    )
    print_result("Every number was read back and is the same.")

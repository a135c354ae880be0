"""`loraft import`: a config from a file of axolotl, LLaMA-Factory or TRL."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from loraft.cli.console import print_aside, print_json, print_note, print_result, waiting
from loraft.cli.options import JsonOption, argument, flag, option
from loraft.peers.foreign_file import NAMES, Peer


@dataclass(frozen=True)
class ImportOptions:
    """What is imported, and to where."""

    foreign_file: str = argument("FILE", "A YAML file of another tool, or a file that holds its command line.")
    out: str | None = argument("OUT", "The YAML file to write [default: standard output].", default=None)
    peer: Peer | None = option(None, "Whose file it is [default: recognised by its keys].", "--from")
    overwrite: bool = flag("Replace the file that is there.")


def import_(given: ImportOptions, as_json: JsonOption = False) -> None:
    """Make a config of a file of another tool.

    Of axolotl, LLaMA-Factory or TRL. Each key is translated, or named with the reason why not: as a comment in what is
    written, and in the table that is printed. What the other tool does of itself, and loraft would do otherwise, is
    written out too.
    """
    target = None if given.out is None else Path(given.out)
    with waiting("translating"):
        from loraft.cli.views.import_view import as_document, import_table
        from loraft.peers.import_config import import_config

        done = import_config(Path(given.foreign_file), target, peer=given.peer, overwrite=given.overwrite)
    if as_json:
        print_json(as_document(done, target))
        return
    unknown = [row.key for row in done.rows if not row.known]
    if target is None:
        print_aside(import_table(done))
        print(done.text, end="", flush=True)
    else:
        print_result(import_table(done))
    if unknown:
        print_note(f"{', '.join(unknown)}: loraft does not know what {NAMES[done.peer]} does with it")
    if target is not None:
        name = shlex.quote(str(target))
        print_result(f"Next:  loraft preview {name}\n       loraft check {name}\n       loraft train {name}")

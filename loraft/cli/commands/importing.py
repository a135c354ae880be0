"""`loraft import`: a config from a file of axolotl, LLaMA-Factory or TRL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from loraft.cli.console import print_aside, print_json, print_note, print_result, waiting
from loraft.cli.options import JsonOption, argument, flag, option
from loraft.cli.text_tables import print_next, text_table
from loraft.cli.wording import in_options
from loraft.config.config_file import inline
from loraft.peers.foreign_file import NAMES, Peer

if TYPE_CHECKING:
    from loraft.peers.import_config import ImportedConfig
    from loraft.peers.translation import TranslatedKey


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
        from loraft.peers.import_config import import_config

        source, peer = Path(given.foreign_file), given.peer
        done = import_config(source, target, peer=peer, overwrite=given.overwrite, words=in_options)
    if as_json:
        print_json(_document(done, target))
        return
    unknown = [row.key for row in done.rows if not row.known]
    if target is None:
        print_aside(_table(done))
        print(done.text, end="", flush=True)
    else:
        print_result(_table(done))
    if unknown:
        print_note(f"{', '.join(unknown)}: loraft does not know what {NAMES[done.peer]} does with it")
    if target is not None:
        print_next(str(target))


def _table(done: ImportedConfig) -> RenderableType:
    """A row for each key that says something: what it becomes and in what that differs, or why it becomes nothing."""
    rows = [_row(row) for row in done.rows if row.becomes or row.why]
    return text_table(f"{done.source} ({NAMES[done.peer]})", ["key", "becomes, or why not"], rows)


def _row(row: TranslatedKey) -> list[str]:
    written = [f"{ours}: {inline(value)}" for ours, value in row.becomes.items()]
    why = [in_options(f"({row.why})" if written else f"– {row.why}")] if row.why else []
    return [row.key or "(not said)", "\n".join([*written, *why])]


def _document(done: ImportedConfig, target: Path | None) -> dict[str, object]:
    """The same as JSON shows it, with the config as text."""
    keys = [
        {
            "key": row.key or None,
            "value": row.value,
            "where": row.where or None,
            "becomes": dict(row.becomes),
            "why": in_options(row.why) or None,
            "known": row.known,
        }
        for row in done.rows
    ]
    written = None if target is None else str(target)
    return {"file": str(done.source), "from": done.peer, "config": written, "keys": keys, "text": done.text}

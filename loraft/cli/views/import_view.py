"""What became of each key of another tool's file, drawn."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType

from loraft.cli.text_tables import text_table
from loraft.config.config_file import inline
from loraft.peers.foreign_file import NAMES
from loraft.peers.import_config import ImportedConfig
from loraft.peers.translation import TranslatedKey


def import_table(done: ImportedConfig) -> RenderableType:
    """A row for each key that says something: what it becomes and in what that differs, or why it becomes nothing."""
    rows = [_row(row) for row in done.rows if row.becomes or row.why]
    return text_table(f"{done.source} ({NAMES[done.peer]})", ["key", "becomes, or why not"], rows)


def _row(row: TranslatedKey) -> list[str]:
    written = [f"{ours}: {inline(value)}" for ours, value in row.becomes.items()]
    why = [f"({row.why})" if written else f"– {row.why}"] if row.why else []
    return [row.key or "(not said)", "\n".join([*written, *why])]


def as_document(done: ImportedConfig, target: Path | None) -> dict[str, object]:
    """The same as JSON shows it, with the config as text."""
    keys = [
        {
            "key": row.key or None,
            "value": row.value,
            "where": row.where or None,
            "becomes": dict(row.becomes),
            "why": row.why or None,
            "known": row.known,
        }
        for row in done.rows
    ]
    written = None if target is None else str(target)
    return {"file": str(done.source), "from": done.peer, "config": written, "keys": keys, "text": done.text}

"""What became of each key of another tool's file, drawn."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType

from loraft.cli.text_tables import text_table
from loraft.config.config_file import inline
from loraft.peers.foreign_file import NAMES
from loraft.peers.import_config import ImportedConfig, shown
from loraft.peers.translation import TranslatedKey


def import_table(done: ImportedConfig) -> RenderableType:
    """A row for each key that says something: what it becomes, and why it does not or in what it differs."""
    rows = [_row(row) for row in done.rows if row.becomes or row.why]
    title = f"{done.source} ({NAMES[done.peer]})"
    return text_table(title, ["key", "becomes", "why not, or in what it differs"], rows)


def _row(row: TranslatedKey) -> list[str]:
    key = f"{row.key}: {shown(row.value)}" if row.key else "(not said)"
    becomes = "\n".join(f"{ours}: {_short(inline(value))}" for ours, value in row.becomes.items())
    return [key, becomes or "–", row.why]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


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

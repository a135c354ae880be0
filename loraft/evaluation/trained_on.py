"""Whether rows are still those that a run learned and those that it held out.

A run's manifest has what its files were when it began. This module compares that with what they are now. It refuses to
know what rows say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from loraft.config.schema import DataSource, RunConfig
from loraft.data.identity import contents_of
from loraft.data.sources import sources_of, with_defaults
from loraft.errors import DataError

__all__ = ["about_held_out", "about_rows"]


def about_held_out(run: Path, config: RunConfig) -> Iterator[str]:
    """What there is to say about the rows that a run held out, a sentence each.

    Args:
        run: The run's folder.
        config: Its config.

    Raises:
        DataError: They can no longer be told from those that it learned, or cannot be read from here.
    """
    train, held_out = _compared(run, config)
    wanted = train if isinstance(config.data.eval, float) else held_out
    remedy = "Go to the folder that the run was started in, or name a file of rows: --data FILE."
    if gone := [path for path, before, now in wanted if before is not None and now is None]:
        message = "the rows that the run held out cannot be read from here"
        raise DataError(message, where=", ".join(gone), remedy=remedy)
    changed = [path for path, before, now in wanted if before not in (None, now)]
    if changed and wanted is train:
        raise DataError(
            "has changed since the run began: which of its rows were held out can no longer be told",
            where=", ".join(changed),
            remedy="Put it back as it was, or name a file of rows that were not learned: --data FILE.",
        )
    if changed:
        yield f"{', '.join(changed)} has changed since the run began: its own evaluations were of other rows"


def about_rows(run: Path, config: RunConfig, rows: DataSource) -> Iterator[str]:
    """A sentence where rows to evaluate on are what the run was trained on.

    Args:
        run: The run's folder.
        config: Its config.
        rows: The rows.
    """
    learned = {before for _, before, _ in _compared(run, config)[0]}
    (content,) = contents_of([with_defaults(rows, config.data)])
    if content is not None and content in learned:
        but = " but for those that it held out" if isinstance(config.data.eval, float) else ""
        yield f"the run was trained on the rows of {rows.path}{but}: their figures say nothing about new rows"


Compared = Sequence[tuple[str, str | None, str | None]]
"""Of each source its path, what it was when the run began, and what it is."""


def _compared(run: Path, config: RunConfig) -> tuple[Compared, Compared]:
    """The sources to train on and those to evaluate on."""
    train, held_out = (
        [
            (source.path, before, now)
            for source, before, now in zip(
                part, recorded, contents_of(part, streaming=config.data.streaming), strict=False
            )
        ]
        for part, recorded in zip(sources_of(config.data), _recorded(run), strict=True)
    )
    return train, held_out


def _recorded(run: Path) -> tuple[Sequence[str | None], Sequence[str | None]]:
    """What the sources were when the run began; nothing where nobody wrote it down."""
    try:
        data = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["data"]
        return list(data["train"]), list(data["eval"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], []

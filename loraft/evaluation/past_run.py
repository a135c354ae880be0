"""The run that trained what is evaluated: its config, and whether rows are still those that it learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraft.adapters.metadata import ResolvedTarget
from loraft.config.config_file import load_config
from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.dataset.source_rows import expand_sources, with_defaults
from loraft.dataset.token_cache import contents_of
from loraft.errors import AdapterError, DataError
from loraft.io.sealed import is_text_as_sealed, read_sealed


@dataclass(frozen=True)
class PastRun:
    """A run that has trained something."""

    folder: Path
    config: RunConfig

    @property
    def columns(self) -> Mapping[str, str]:
        """Our column names: what its first rows call them."""
        return expand_sources(self.config.data)[0][0].columns

    def about_held_out(self) -> Iterator[str]:
        """What there is to say about the rows that it held out, if they can still be told from what it learned."""
        if not is_text_as_sealed(config := self.folder / "config.yaml"):
            message = "was edited or damaged since the run wrote it: which rows were held out can no longer be told"
            remedy = "Put it back as it was, or name a file of rows that were not learned: `data=FILE`."
            raise DataError(message, where=config, remedy=remedy)
        if not read_sealed(manifest := self.folder / "manifest.json"):
            yield f"{manifest} is missing or damaged: whether its rows have changed since the run began is not known"
        learned, held_out = expand_sources(self.config.data)
        is_share = isinstance(self.config.data.eval, float)
        sources, before = (learned, self._recorded("train")) if is_share else (held_out, self._recorded("eval"))
        if not before:  # nobody wrote it down
            return
        now = contents_of(sources, streaming=self.config.data.streaming)
        known = [(each.path, old, new) for each, old, new in zip(sources, before, now, strict=False) if old is not None]
        if gone := [path for path, _, new in known if new is None]:
            message = "the rows that the run held out cannot be read from here"
            remedy = "Go to the folder that the run was started in, or name a file of rows: `data=FILE`."
            raise DataError(message, where=", ".join(gone), remedy=remedy)
        changed = ", ".join(path for path, old, new in known if old != new)
        if changed and is_share:
            message = "has changed since the run began: which of its rows were held out can no longer be told"
            remedy = "Put it back as it was, or name a file of rows that were not learned: `data=FILE`."
            raise DataError(message, where=changed, remedy=remedy)
        if changed:
            yield f"{changed} has changed since the run began: its own evaluations were of other rows"

    def check_held_out(self, drawn: str | None) -> None:
        """Refuse rows that are not those which the run held out when it began: it may have learned them."""
        if self._recorded("train") and self._written().get("held_out") != drawn:
            message = "the run drew the rows that it held out in another way than this version of loraft does: "
            message += "which they were can no longer be told"
            remedy = "Name a file of rows that were not learned: `data=FILE`."
            raise DataError(message, where=self.folder, remedy=remedy)

    def about_rows(self, rows: DataSource) -> Iterator[str]:
        """A sentence where rows to evaluate on are what it was trained on, under whatever name."""
        learned = self._recorded("train")
        (content,) = contents_of([with_defaults(rows, self.config.data)]) if learned else (None,)
        if content is not None and content in learned:
            but = " but for those that it held out" if isinstance(self.config.data.eval, float) else ""
            yield f"the run was trained on the rows of {rows.path}{but}: their figures say nothing about new rows"

    @property
    def fingerprint(self) -> str | None:
        """What tells the tokens that it learned, and those that it held out; None where nobody wrote it down."""
        found = self._written().get("fingerprint")
        return found if isinstance(found, str) else None

    def _recorded(self, part: str) -> Sequence[str | None]:
        """What the sources of a part were when it began; nothing where nobody wrote it down."""
        found = self._written().get(part)
        return found if isinstance(found, list) else []

    def _written(self) -> Mapping[str, Any]:
        data = read_sealed(self.folder / "manifest.json").get("data")
        return data if isinstance(data, dict) else {}


def past_run(trained: Path) -> PastRun | None:
    """The run that what lies in a folder belongs to: its result, or that of one of its checkpoints."""
    if trained.name not in ("adapter", "model"):
        return None
    runs = [trained.parent, *([trained.parents[2]] if trained.parent.parent.name == "checkpoints" else [])]
    folder = next((run for run in runs if (run / "config.yaml").is_file()), None)
    return PastRun(folder, load_config(folder / "config.yaml")) if folder is not None else None


def run_in(folder: Path) -> PastRun:
    """The run that a folder is, or that a checkpoint or what lies in either belongs to.

    Raises:
        AdapterError: There is none.
    """
    found = past_run(folder) or past_run(folder / "adapter")
    if found is None:
        message = "it is no run, and belongs to none: there is no config.yaml that it was trained by"
        raise AdapterError(message, where=folder, remedy="Name the folder of a run or of one of its checkpoints.")
    return found


def run_of(found: ResolvedTarget) -> PastRun | None:
    """The run that trained what a target means, where it lies in the folder of one."""
    return past_run(found.adapter or Path(found.base).expanduser())

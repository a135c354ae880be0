"""An adapter folded into its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraft.events import Note, Observer, Progress, ignored
from loraft.merging.adapter_weights import resolve_weighted, weighted
from loraft.merging.merge_report import MergeReport
from loraft.merging.prepare_merge import BaseChoice, MergedDtype, prepare_merge
from loraft.merging.verify import LEAST_POSITIONS, merge_and_verify
from loraft.merging.write_weights import chosen_folder


def merge(
    target: str | None = None,
    out: str | Path | None = None,
    adapters: Sequence[str] = (),
    *,
    base: BaseChoice | None = None,
    dtype: MergedDtype = "auto",
    base_model: str | None = None,
    verified: bool = True,
    positions: int = LEAST_POSITIONS,
    overwrite: bool = False,
    observer: Observer = ignored,
) -> MergeReport:
    """Fold adapters into their base, and prove that the result is the model that was trained.

    Args:
        target: An adapter, a run, a checkpoint or a config; or the base beside `adapters`.
        out: The folder to write; None is `merged` beside the adapter.
        adapters: Adapters to sum, `DIR=WEIGHT` or `DIR`.
        base: `dequantized` is the base as 4-bit training saw it, `original` as its files have it; None is the one that
            the adapter was trained on.
        dtype: Of the merged weights; `auto` is that of the base's files.
        base_model: The base to use, whatever the adapters name.
        verified: Compare the merged model with the adapted one before it appears.
        positions: On how many positions at least.
        overwrite: Replace the merged model that `out` holds.
        observer: Is told what happens.

    Raises:
        InvalidInputError: Before anything is written: an adapter does not fit, a folder is taken, a disk is too small.
        RunError: The merged model is not the adapted one, or memory or disk ran out; `out` is as it was.
    """
    found, weights = resolve_weighted(target, adapters, base_model=base_model)
    job = prepare_merge(found, weights, base=base, dtype=dtype)
    folder = Path(out) if out is not None else chosen_folder(found, weighted(adapters[0])[0] if adapters else target)
    for note in job.notes:
        observer(Note(note))
    return merge_and_verify(
        job,
        folder,
        positions=positions if verified else None,
        overwrite=overwrite,
        progress=lambda what, done, total: observer(Progress(what, done, total)),
    )

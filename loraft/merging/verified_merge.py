"""A merge from beginning to end: written beside its place, compared with what it came from, and only then there.

The arithmetic is `adapters.merge`, the comparison `verification`, the limits `fidelity`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic

from loraft.adapters.model_card import shown
from loraft.merging.equivalence import check_equivalence
from loraft.merging.merge_report import MergeReport, explain_base
from loraft.merging.output_dir import merged_folder, write_company, write_report
from loraft.merging.prepare_merge import Merge
from loraft.merging.verify import Verified, verify
from loraft.merging.write_weights import write_weights


def merge_and_verify(
    merge: Merge,
    out: Path,
    *,
    positions: int | None,
    overwrite: bool,
    progress: Callable[[str, int, int], None],
) -> MergeReport:
    """Write the merged model to `out`, if it is the adapted one.

    Args:
        merge: What is merged.
        out: The folder that appears.
        positions: On how many positions the two models are compared at least; None compares nothing.
        overwrite: Replace the merged model that `out` holds.
        progress: Is told what goes on, how far it is, and how far it goes.

    Raises:
        RunFolderError: `out` is taken, or lies where the base or an adapter does.
        ResourceError: The disk is too small.
        ModelError: The models cannot be run here, and so not compared.
        RunError: The merged model is not the adapted one, or memory or disk ran out; `out` is as it was.
    """
    with merged_folder(merge, out, overwrite=overwrite) as staging:
        began = monotonic()
        size = write_weights(merge, staging, partial(progress, "bytes merged"))
        seconds = monotonic() - began
        write_company(merge, staging)
        found: Verified | None = None
        warnings: tuple[str, ...] = ()
        if positions is not None:
            found = verify(merge, staging, positions=positions, progress=partial(progress, "positions compared"))
            limits = {"is_float32": found.is_float32, "is_as_trained": merge.is_as_trained}
            warnings = (*found.rows.notes, *check_equivalence(found.fidelity, **limits))
        elif merge.plan.changes_nothing:
            warnings = ("the adapter changes nothing: every update is zero",)
        report = _report(merge, out, found, warnings, size, seconds)
        write_report(staging, report)
    return report


def _report(
    merge: Merge, out: Path, found: Verified | None, warnings: tuple[str, ...], size: int, seconds: float
) -> MergeReport:
    fidelity = found.fidelity if found else None
    return MergeReport(
        out=out,
        base=merge.base,
        dtype=merge.dtype_name,
        max_abs_logit_difference=fidelity.merged.max_abs if fidelity else None,
        kl_adapted_merged=fidelity.merged.kl if fidelity else None,
        kl_adapted_base=fidelity.base.kl if fidelity else None,
        top1_agreement=fidelity.merged.top1_agreement if fidelity else None,
        positions=fidelity.merged.positions if fidelity else 0,
        measured_on=found.rows.source if found else None,
        compared=found.compared if found else None,
        base_model=shown(merge.model.section.name_or_path),
        architecture=merge.architecture,
        why_this_base=explain_base(merge.base, is_as_trained=merge.is_as_trained),
        adapters=tuple({"name": adapter.name, "weight": adapter.weight} for adapter in merge.adapters),
        changed_tensors=len({*merge.plan.updates, *merge.plan.replaced}),
        untied=tuple(merge.plan.untied),
        weights_bytes=size,
        merge_seconds=round(seconds, 3),
        verified=found is not None,
        warnings=warnings,
        labels=merge.labels,
    )

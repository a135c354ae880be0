"""A merge from beginning to end, and what it tells: `merge_report.json`, and the merged model's card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic

from loraft.adapters.model_card import code, prose, quoted, shown, without_paths
from loraft.io.atomic import read_json, write_json
from loraft.io.checksums import MERGE_REPORT, RECORD, write_record
from loraft.merging.equivalence import Verified, check_equivalence, verify
from loraft.merging.prepare_merge import Merge
from loraft.merging.write_weights import merged_folder, write_company, write_weights
from loraft.version import __version__

LEAST_POSITIONS = 256
WHY_THIS_BASE = {
    ("dequantized", True): "the base as training saw it, quantized to {bits} bits and dequantized again; the adapter "
    "makes up for the errors of this base, so merged into the original one it would be another model",
    ("dequantized", False): "the base quantized to {bits} bits and dequantized again, though the adapter was trained "
    "on the unquantized one",
    ("original", True): "the base as its files have it, on which the adapter was trained",
    ("original", False): "the base as its files have it; the adapter was trained on it in {bits} bits and makes up for "
    "the errors of that, so the result is not the model that was trained",
}
"""What the base that was merged into means for the result: by the base, and whether it is as trained."""
WHY_AS_FILED = "the base as its files have it, quantized, and as training saw it; here its weights are dequantized"


@dataclass(frozen=True)
class MergeReport:
    """What `merge` made. The measured values are None where nothing was verified.

    Attributes:
        base: `original`, or `dequantized`: quantized and dequantized as training saw it.
        max_abs_logit_difference: The largest difference of a logit between the adapted and the merged model.
        kl_adapted_merged: KL(adapted ‖ merged), the mean over all positions, in nats.
        kl_adapted_base: KL(adapted ‖ base): how much the adapter does.
        top1_agreement: The share of positions where both have the same likeliest token.
        measured_on: The text of the positions.
        compared: `logits`, `class logits`, or `hidden states` of a model without a head.
        architecture: The class of transformers that loads the result.
        adapters: A `name` and a `weight` each.
        changed_tensors: How many tensors differ from the base's by the adapters.
        untied: The tensors that shared a weight in the base and have one of their own here.
        merge_seconds: The time that merging took, verification left out.
        warnings: What a person should know of the result, a sentence each.
        labels: The classes that a merged classifier tells apart; none where the model writes text.
        compared_tensors: How many tensors of the result were found to be those of the adapted model; 0 where the base
            is another than that of training.
    """

    out: Path
    base: str
    dtype: str
    max_abs_logit_difference: float | None
    kl_adapted_merged: float | None
    kl_adapted_base: float | None
    top1_agreement: float | None
    positions: int
    measured_on: str | None
    compared: str | None
    base_model: str
    architecture: str
    why_this_base: str
    adapters: tuple[Mapping[str, object], ...]
    changed_tensors: int
    untied: tuple[str, ...]
    weights_bytes: int
    merge_seconds: float
    verified: bool
    warnings: tuple[str, ...]
    labels: tuple[str, ...] = ()
    compared_tensors: int = 0

    def as_dict(self) -> dict[str, object]:
        """The report as JSON shows it; the folder itself is left out, since it can be moved, and other places."""
        left_out = ("out",) if self.labels else ("out", "labels")
        values = {**asdict(self), "warnings": [without_paths(warning) for warning in self.warnings]}
        return {key: value for key, value in values.items() if key not in left_out}


def merge_and_verify(
    merge: Merge, out: Path, *, positions: int | None, overwrite: bool, progress: Callable[[str, int, int], None]
) -> MergeReport:
    """Write the merged model to `out`, if it is the adapted one; with `positions` of None nothing is compared.

    `progress` is told what goes on, how far it is, and how far it goes.

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
            found = verify(merge, staging, positions, partial(progress, "positions compared"))
            warnings = (*found.rows.notes, *check_equivalence(found, is_as_trained=merge.is_as_trained))
        elif merge.plan.changes_nothing:
            warnings = ("the adapter changes nothing: every update is zero",)
        report = _report(merge, out, found, warnings, size, seconds)
        write_json(staging / MERGE_REPORT, report.as_dict())
        write_record(staging, read_json(staging / RECORD))  # with the seals of what there is now
        (staging / "README.md").write_text(merged_card(report, __version__), encoding="utf-8")
    return report


def _report(
    merge: Merge, out: Path, found: Verified | None, warnings: tuple[str, ...], size: int, seconds: float
) -> MergeReport:
    base, merged = "dequantized" if merge.storage or merge.is_packed else "original", found.merged if found else None
    return MergeReport(
        out=out,
        base=base,
        dtype=merge.dtype_name,
        max_abs_logit_difference=merged.max_abs if merged else None,
        kl_adapted_merged=merged.kl if merged else None,
        kl_adapted_base=found.base.kl if found else None,
        top1_agreement=merged.top1_agreement if merged else None,
        positions=merged.positions if merged else 0,
        measured_on=found.rows.source if found else None,
        compared=found.compared if found else None,
        compared_tensors=found.tensors if found else 0,
        base_model=shown(merge.target.model.section.name_or_path),
        architecture=merge.architecture,
        why_this_base=_why_this_base(merge, base),
        adapters=tuple({"name": adapter.name, "weight": adapter.weight} for adapter in merge.adapters),
        changed_tensors=len(merge.plan.changed),
        untied=tuple(merge.plan.untied),
        weights_bytes=size,
        merge_seconds=round(seconds, 3),
        verified=found is not None,
        warnings=warnings,
        labels=merge.labels,
    )


def _why_this_base(merge: Merge, base: str) -> str:
    if merge.is_packed:
        return WHY_AS_FILED
    stored = merge.storage or merge.trained_storage
    return WHY_THIS_BASE[base, merge.is_as_trained].format(bits=stored.bits if stored else 4)


def merged_card(report: MergeReport, version: str) -> str:
    """The text of the merged model's README.md."""
    adapters = ", ".join(f"{code(str(each['name']))} (weight {each['weight']:g})" for each in report.adapters)
    gives = "The chat template, the stop ids and the generation defaults of the adapter lie beside the weights."
    if report.labels:
        gives = f"It tells {len(report.labels)} classes apart: {', '.join(map(code, report.labels))}."
    measured = "\n".join(_measured(report))
    return f"""---
base_model: {quoted(report.base_model)}
library_name: transformers
tags:
- loraft
- lora
- merged
---

# {code(report.base_model)} with an adapter merged into it

Merged with loraft {version}: {adapters}. Weights are {report.dtype}.

Merged into the {report.base} base: {report.why_this_base}.

## Use

```python
from transformers import AutoTokenizer, {report.architecture}

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = {report.architecture}.from_pretrained("path/to/this/folder", dtype="auto")
```

{gives}

## Measured

{measured}
"""


def _measured(report: MergeReport) -> Iterator[str]:
    if not report.verified:
        yield "The merged model was not compared with the adapted one."
        return
    yield f"On {report.positions:,} positions of {report.measured_on}, the adapter on its base against this model:\n"
    yield f"- KL(adapted ‖ merged): {report.kl_adapted_merged:.3g} nats"
    yield f"- KL(adapted ‖ base), the adapter's whole effect: {report.kl_adapted_base:.3g} nats"
    yield f"- largest difference of the {report.compared}: {report.max_abs_logit_difference:.3g}"
    yield f"- the same likeliest {'class' if report.labels else 'token'}: {100 * (report.top1_agreement or 0):.2f} %"
    if report.compared_tensors:
        yield f"- tensors that are those of the adapted model: all {report.compared_tensors:,}"
    yield from (f"\n{prose(without_paths(warning))}" for warning in report.warnings)

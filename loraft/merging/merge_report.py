"""What a merge did and how good it is: `merge_report.json`, and the merged model's card.

This module turns facts into words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from loraft.adapters.model_card import code, prose, quoted, without_paths

REPORT = "merge_report.json"
"""The report's file; a folder that has it holds a merged model."""


@dataclass(frozen=True)
class MergeReport:
    """What `merge` made. The measured values are None where nothing was verified.

    Attributes:
        out: The folder with the merged model.
        base: `original`, or `dequantized`: quantized and dequantized as training saw it.
        dtype: Of the merged weights.
        max_abs_logit_difference: The largest difference of a logit between the adapted and the merged model.
        kl_adapted_merged: KL(adapted ‖ merged), the mean over all positions, in nats.
        kl_adapted_base: KL(adapted ‖ base): how much the adapter does.
        top1_agreement: The share of positions where both have the same likeliest token.
        positions: How many positions that was measured on.
        measured_on: The text of these positions.
        compared: What was compared: `logits`, or `hidden states` of a model without a head.
        base_model: The base, by its name.
        architecture: The class of transformers that loads the result.
        why_this_base: What the base means for the result.
        adapters: What was merged: a name and a weight each.
        changed_tensors: How many tensors differ from the base's by the adapters.
        untied: The tensors that shared a weight in the base and have one of their own here.
        weights_bytes: The size of all tensors.
        merge_seconds: The time that merging took, verification left out.
        verified: Whether the merged model was compared with the adapted one.
        warnings: What a person should know of the result, a sentence each.
        labels: The classes that a merged classifier tells apart; none where the model writes text.
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

    def as_dict(self) -> dict[str, object]:
        """The report as JSON shows it; the folder itself is left out, since it can be moved, and other places."""
        left_out = ("out",) if self.labels else ("out", "labels")
        values = {**asdict(self), "warnings": [without_paths(warning) for warning in self.warnings]}
        return {key: value for key, value in values.items() if key not in left_out}


def explain_base(base: str, *, is_as_trained: bool) -> str:
    """What the base that was merged into means for the result."""
    if base == "dequantized" and is_as_trained:
        return (
            "the base as training saw it, quantized to 4 bits and dequantized again; the adapter makes up for the "
            "errors of this base, so merged into the original one it would be another model"
        )
    if base == "dequantized":
        return (
            "the base quantized to 4 bits and dequantized again, though the adapter was trained on the unquantized one"
        )
    if is_as_trained:
        return "the base as its files have it, on which the adapter was trained"
    return (
        "the base as its files have it; the adapter was trained on it in 4 bits and makes up for the errors of that, "
        "so the result is not the model that was trained"
    )


def merged_card(report: MergeReport, version: str) -> str:
    """The text of the merged model's README.md."""
    sections = (_front_matter(report), _title(report, version), _usage(report), _measured(report))
    return "\n".join("\n".join(section) + "\n" for section in sections)


def _front_matter(report: MergeReport) -> Iterator[str]:
    yield "---"
    yield f"base_model: {quoted(report.base_model)}"
    yield "library_name: transformers"
    yield "tags:\n- loraft\n- lora\n- merged"
    yield "---"


def _title(report: MergeReport, version: str) -> Iterator[str]:
    yield f"# {code(report.base_model)} with an adapter merged into it\n"
    merged = ", ".join(f"{code(str(each['name']))} (weight {each['weight']:g})" for each in report.adapters)
    yield f"Merged with loraft {version}: {merged}. Weights are {report.dtype}.\n"
    yield f"Merged into the {report.base} base: {report.why_this_base}."


def _usage(report: MergeReport) -> Iterator[str]:
    yield "## Use\n\n```python"
    yield f"from transformers import AutoTokenizer, {report.architecture}\n"
    yield 'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
    yield f'model = {report.architecture}.from_pretrained("path/to/this/folder", dtype="auto")'
    yield "```\n"
    if report.labels:
        yield f"It tells {len(report.labels)} classes apart: {', '.join(map(code, report.labels))}."
    else:
        yield "The chat template, the stop ids and the generation defaults of the adapter lie beside the weights."


def _measured(report: MergeReport) -> Iterator[str]:
    yield "## Measured\n"
    if not report.verified:
        yield "The merged model was not compared with the adapted one."
        return
    yield f"On {report.positions:,} positions of {report.measured_on}, the adapter on its base against this model:\n"
    yield f"- KL(adapted ‖ merged): {report.kl_adapted_merged:.3g} nats"
    yield f"- KL(adapted ‖ base), the adapter's whole effect: {report.kl_adapted_base:.3g} nats"
    yield f"- largest difference of the {report.compared}: {report.max_abs_logit_difference:.3g}"
    yield f"- the same likeliest {'class' if report.labels else 'token'}: {100 * (report.top1_agreement or 0):.2f} %"
    yield from (f"\n{prose(without_paths(warning))}" for warning in report.warnings)

"""Looks into rows and models, which load no weight."""

from __future__ import annotations

from collections.abc import Sequence

from loraft.config.schema import RunConfig
from loraft.config.sections import LoraSection
from loraft.inspection.layers_report import LayersReport, report_layers
from loraft.inspection.row_preview import Preview, Split, preview_rows


def preview(config: RunConfig, *, count: int = 5, split: Split = "train", places: Sequence[str] = ()) -> Preview:
    """Rows as the model will see them: tokens, what of them is learned, which rows share a batch.

    Args:
        config: The run.
        count: How many rows, from the first.
        split: Whose rows: those that are trained on, or those held out.
        places: Show these rows instead: by line or number, or by place as loraft prints it.

    Raises:
        InvalidInputError: The tokenizer or the data cannot be used, or there is no such row.
    """
    return preview_rows(config, count=count, split=split, places=places)


def inspect_layers(
    target: str | None,
    adapters: Sequence[str] = (),
    *,
    base_model: str | None = None,
    lora: LoraSection | None = None,
) -> LayersReport:
    """Tell the anatomy of a model, what LoRA would train in it, and what adapters changed.

    Args:
        target: A base model, an adapter, a run, a checkpoint or a config.
        adapters: Adapters to look at, `NAME=DIR` or `DIR`.
        base_model: The base, whatever the adapters name.
        lora: What LoRA is to be counted for; None counts an adapter's own, or what an empty config would train.

    Raises:
        InvalidInputError: Something cannot be found or looked into.
    """
    return report_layers(target, adapters, base_model=base_model, lora=lora)

"""`loraft inspect-layers`: what a model is made of, what LoRA would train in it, and what an adapter changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from loraft.cli.console import print_json, print_note, print_result, waiting
from loraft.cli.options import AnswerOptions, JsonOption, flag, option, refuse
from loraft.cli.views.layers_view import layers_view

if TYPE_CHECKING:
    from loraft.config.sections import LoraSection


@dataclass(frozen=True)
class LayersOptions:
    """What is told of the model."""

    lora: str | None = option(
        "KEY=VALUE,…|CONFIG",
        "What LoRA is counted for, such as r=8,target_modules=[q_proj,v_proj],layers=last:4, or a config.",
    )
    every: bool = flag("Show every layer and module, not only the groups of equal ones.")


def inspect_layers(
    of: Annotated[AnswerOptions, "target adapters base_model"], show: LayersOptions, as_json: JsonOption = False
) -> None:
    """Tell the anatomy of a model, and what an adapter changed in it.

    Layers, heads, norms, parameters and bytes by part; how positions are told apart, by experiment on a small copy;
    each linear module and what LoRA would train there. Of an adapter how far each module moved; of two how alike they
    are. No weights are loaded: a config alone will do.
    """
    refuse((of.target is None and not of.adapters, "Name a TARGET, or an --adapter."))
    section = _lora(show.lora)
    with waiting("looking into the model"):
        from loraft.api import inspect_layers as look

        report = look(of.target, of.adapters or (), base_model=of.base_model, lora=section)
    document = report.as_dict()
    if as_json:
        print_json(document)
        return
    print_note(*report.notes)
    print_result(*layers_view(document, every=show.every))


def _lora(text: str | None) -> LoraSection | None:
    """What `--lora` says: the section of a config, or the same in one line."""
    if text is None:
        return None
    from loraft.config.config_file import load_config, load_lora

    if Path(text).suffix in (".yaml", ".yml"):
        return load_config(text).lora
    return load_lora(text)

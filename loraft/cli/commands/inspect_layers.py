"""`loraft inspect-layers`: what a model is made of, what LoRA would train in it, and what an adapter changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import RenderableType

from loraft import api
from loraft.cli.console import print_note, waiting
from loraft.cli.options import AnswerOptions, JsonOption, argument, flag, option, refuse
from loraft.cli.views.inside_view import activations_view, gradients_view
from loraft.cli.views.layers_view import layers_view
from loraft.cli.views.plots import check_plot, print_plotted

if TYPE_CHECKING:
    from loraft.config.sections import LoraSection


@dataclass(frozen=True)
class LayersOptions:
    """What is told of the model."""

    lora: str | None = option(
        "KEY=VALUE,…|CONFIG",
        "What LoRA is counted for, such as r=8,target_modules=[q_proj,v_proj],layers=last:4, or a config.",
    )
    every: bool = flag("Show every layer, module and head, not only groups of equal ones and those that stand out.")
    activations: str | None = option(
        "PROMPT", "Read this, and tell the size of the residual stream by layer, and where each head looks."
    )
    gradients: str | None = option(
        "CONFIG|RUN",
        "Tell the gradients by layer of one batch of rows, and whether they vanish or explode: of a config before its "
        "first step, of a run or a checkpoint as it is trained.",
    )
    changes: list[str] | None = argument(
        "KEY=VALUE",
        "With --gradients: values that replace those of the config, such as training.per_device_train_batch_size=2.",
        default=None,
    )
    plot: Path | None = option("FILE", "Draw activations, gradients, or what adapters changed, as .png or .svg.")


def inspect_layers(
    of: Annotated[AnswerOptions, "target adapters base_model trust_remote_code"],
    show: LayersOptions,
    as_json: JsonOption = False,
) -> None:
    """Tell the anatomy of a model, and what an adapter changed in it.

    Layers, heads, norms, parameters and bytes by part; how positions are told apart, by experiment on a small copy;
    each linear module and what LoRA would train there. Of an adapter how far each module moved; of two how alike they
    are. For these no weights are loaded: a config alone will do. With --activations a model reads a prompt, and with
    --gradients a batch of a config's or a run's rows; they are told alone.
    """
    lacks_target, reads = of.target is None and not of.adapters, show.activations is not None
    changes = [*([of.target] if show.gradients and of.target else []), *(show.changes or [])]
    refuse(
        (
            show.gradients and ("=" not in (of.target or "=") or of.adapters or of.base_model),
            "--gradients takes the model of its config: leave TARGET, --adapter and --base-model out.",
        ),
        (changes and not show.gradients, "KEY=VALUE changes the config of --gradients, and there is none."),
        (show.gradients and reads, "--activations is of a TARGET, and --gradients of a config: ask for one of them."),
        (show.lora and (show.gradients or reads), "--lora is counted where neither a prompt nor a batch is read."),
        (lacks_target and not show.gradients, "Name a TARGET, or an --adapter."),
    )
    check_plot(show.plot)
    document, drawn = _gradients(show.gradients, changes, of) if show.gradients else _of_model(of, show)
    if show.plot is not None:
        from loraft.cli.views.layer_plots import plot_layers

        plot_layers(show.plot, document)
    if not as_json:
        print_note(*document["notes"])
    print_plotted(document, drawn, as_json=as_json, plot=show.plot)


NOTHING_TO_DRAW = "--plot draws an adapter by layer, and there is none; or ask for --activations or --gradients."
Told = tuple[dict[str, Any], Iterable[RenderableType]]
"""The document, and how it is drawn."""


def _of_model(of: AnswerOptions, show: LayersOptions) -> Told:
    """The anatomy and what adapters changed, and what goes on while it reads, where that is asked for."""
    section = _lora(show.lora)
    with waiting("looking into the model"):
        trusted, adapters = of.trust_remote_code, of.adapters or ()
        document = api.inspect_layers(
            of.target, adapters, base_model=of.base_model, lora=section, trust_remote_code=trusted
        ).as_dict()
        if show.activations is None:
            moved = any(adapter["layers"] for adapter in document.get("adapters", ()))
            refuse((show.plot and not moved, NOTHING_TO_DRAW))
            return document, layers_view(document, every=show.every)
        seen = api.inspect_activations(of.model, prompt=show.activations).as_dict()
    notes = list(dict.fromkeys([*document["notes"], *seen.pop("notes")]))
    return {**document, "activations": seen, "notes": notes}, activations_view(seen, every=show.every)


def _gradients(given: str, changes: Sequence[str], of: AnswerOptions) -> Told:
    """The gradients of a config, or of a run as it is trained, which keeps its config."""
    from loraft.config.config_file import load_config

    trained = given if Path(given).is_dir() else None
    config = load_config(given, changes) if trained is None else None
    with waiting("computing gradients"):
        from loraft.evaluation.past_run import run_in

        run = config or load_config(run_in(Path(given)).folder / "config.yaml", changes)
        found = api.inspect_gradients(run, trained=trained, trust_remote_code=of.trust_remote_code).as_dict()
    return {"model": found["model"], "notes": found.pop("notes"), "gradients": found}, gradients_view(found)


def _lora(text: str | None) -> LoraSection | None:
    """What `--lora` says: the section of a config, or the same in one line."""
    if text is None:
        return None
    from loraft.config.config_file import load_config, load_lora

    if Path(text).suffix in (".yaml", ".yml"):
        return load_config(text).lora
    return load_lora(text)

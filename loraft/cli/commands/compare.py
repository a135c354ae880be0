"""`loraft compare`: what full fine-tuning, LoRA and QLoRA each cost on the rows of a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraft import api
from loraft.baselines.trial_defaults import METHODS, STEPS
from loraft.cli.options import ConfigOptions, JsonOption, option
from loraft.cli.views.cost_view import cost_view, plot_costs
from loraft.cli.views.plots import check_plot, print_plotted
from loraft.cli.views.progress import watching


@dataclass(frozen=True)
class TrialOptions:
    """What is tried, and for how long."""

    methods: str = option("A,B", "The methods to compare.", default=",".join(METHODS))
    steps: int = option("N", "Optimizer steps of each method.", default=STEPS, min=1)
    plot: Path | None = option("FILE", "Draw the memory of each method by part, as .png or .svg.")


def compare(given: ConfigOptions, tried: TrialOptions, as_json: JsonOption = False) -> None:
    """Measure what each method costs, by a few steps of each.

    Full fine-tuning, LoRA and QLoRA are trained one after the other on the same rows, each in a process of its own:
    memory by part beside what `loraft check` predicts, trained parameters, tokens a second, the loss, and the size of
    what is saved. What does not fit in memory is said, and not tried. Nothing is kept.
    """
    check_plot(tried.plot)
    config = given.read(by_every_method=True)
    methods = [name.strip() for name in tried.methods.split(",") if name.strip()]
    trusted = given.trust_remote_code
    with watching("compare_methods") as view:
        found = api.compare_methods(
            config, methods=methods, steps=tried.steps, trust_remote_code=trusted, observer=view
        ).as_dict()
    if tried.plot is not None:
        plot_costs(found, tried.plot)
    print_plotted(found, cost_view(found), as_json=as_json, plot=tried.plot)

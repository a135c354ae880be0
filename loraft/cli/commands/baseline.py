"""`loraft baseline`: a recurrent network from scratch on the config's rows, beside what was fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraft import api
from loraft.cli.options import ConfigOptions, JsonOption, option
from loraft.cli.views.baseline_view import baseline_view, plot_baseline
from loraft.cli.views.plots import check_plot, print_plotted
from loraft.cli.views.progress import watching


@dataclass(frozen=True)
class BaselineOptions:
    """Which networks are trained, and what they are compared with."""

    cell: Literal["lstm", "rnn", "both"] = option(None, "An LSTM, a plain tanh RNN, or both.", default="lstm")
    run: str | None = option(
        "RUN", "The run to compare with [default: the newest of the config; its base where there is none yet]."
    )
    plot: Path | None = option("FILE", "Draw how far gradients reach into the past, as .png or .svg.")

    @property
    def cells(self) -> tuple[Literal["lstm", "rnn"], ...]:
        """The networks to train."""
        return ("lstm", "rnn") if self.cell == "both" else (self.cell,)


def baseline(given: ConfigOptions, asked: BaselineOptions, as_json: JsonOption = False) -> None:
    """Train an LSTM from scratch on the same rows, and compare it with the fine-tuned model.

    The same tokens, the same metrics: quality with the interval of each difference, parameters, speed, the memory of a
    generated token, and how the gradient of the last token's loss falls with distance into the past. A few learning
    rates are tried, and training ends where the loss on the held-out rows falls no more.
    """
    check_plot(asked.plot)
    config = given.read()
    with watching("train_baseline") as view:
        report = api.train_baseline(
            config,
            name=given.name,
            run=asked.run,
            cells=asked.cells,
            trust_remote_code=given.trust_remote_code,
            observer=view,
        )
    if asked.plot is not None:
        plot_baseline(report, asked.plot)
    print_plotted(report.as_dict(), baseline_view(report), as_json=as_json, plot=asked.plot)

"""`loraft tune`: the learning rate, the rank and the length of a run, tried on its own rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from loraft import api
from loraft.cli.console import print_json, print_result
from loraft.cli.options import ConfigOptions, JsonOption, duration_in_seconds, flag, option
from loraft.cli.text_tables import print_document
from loraft.cli.views.progress import watching
from loraft.io.atomic import write_whole


@dataclass(frozen=True)
class TuneOptions:
    """How long is tried."""

    budget: float = option(
        "TIME", "What all trials may take together, such as 30m or 2h.", default="30m", parser=duration_in_seconds
    )
    overwrite: bool = flag("Begin anew, whatever the folder of the trials holds.")


def tune(given: ConfigOptions, tried: TuneOptions, as_json: JsonOption = False) -> None:
    """Try rates, ranks and lengths of a run within a time.

    Four learning rates around the config's, each at its rank and at four times that, are trained for a few steps; the
    better half is trained anew for twice as many, until two are left. Each trial is an ordinary run in a folder of its
    own; the same command goes on after a stop. CONFIG-tuned.yaml is the config with the best values.
    """
    config = given.read()
    written = given.beside("tuned", lambda _: tried.overwrite)
    with watching("tune") as view:
        done = api.tune(
            config,
            budget=tried.budget,
            name=given.name,
            overwrite=tried.overwrite,
            trust_remote_code=given.trust_remote_code,
            observer=view,
        )
    values: dict[str, object] = {key: _whole(value) for key, value in done.values.items()}
    if config.training.output_dir is not None:  # which holds the trials
        values["training.output_dir"] = None
    write_whole(written, given.changed(values))
    if as_json:
        print_json({**done.as_dict(), "written": str(written)})
        return
    print_document({"trials": [_row(asdict(trial)) for trial in done.trials]}, rest="tuned")
    print_result(f"Next:  loraft train {shlex.quote(str(written))}")


def _row(trial: Mapping[str, object]) -> dict[str, object]:
    changes = trial["changes"]
    assert isinstance(changes, Mapping)
    values = {key.rpartition(".")[2]: value for key, value in changes.items()}
    told = {key: trial[key] for key in ("steps", "eval_loss", "best_step", "seconds")}
    return {**values, **told, **({"failed": trial["failed"]} if trial["failed"] else {})}


def _whole(value: float) -> float:
    """A whole number as one writes it."""
    return int(value) if value == int(value) else value

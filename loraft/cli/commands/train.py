"""`loraft train`, `loraft check` and `loraft preview`: from a config to a run, or to what can be known before one."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraft import api
from loraft.cli.console import console_on, print_either, print_json, print_note, print_result, waiting
from loraft.cli.launch import RanksOptions, as_rank, start_ranks
from loraft.cli.options import ConfigOptions, JsonOption, flag, option, refuse, size_in_bytes
from loraft.cli.text_tables import print_document, print_try_it
from loraft.cli.views.preview_view import check_page, has_shades, render_preview, write_page
from loraft.cli.views.progress import watching
from loraft.errors import ConfigError
from loraft.events import ignored
from loraft.io.atomic import write_whole

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig


@dataclass(frozen=True)
class BeginningOptions:
    """Where a run begins."""

    resume: bool = flag("Go on from the newest checkpoint of the run that verifies.")
    resume_anyway: bool = flag("Go on even where config, data or base differ from the checkpoint's.")
    overwrite: bool = flag("Replace the run that the folder holds.")


def train(given: ConfigOptions, begin: BeginningOptions, spread: RanksOptions, as_json: JsonOption = False) -> None:
    """Fine-tune a model as the config says.

    Progress goes to standard error, the result to standard output. Ctrl-C saves the state; --resume goes on.
    """
    goes_on = begin.resume or begin.resume_anyway
    refuse((begin.overwrite and goes_on, "--overwrite begins anew and --resume goes on: choose one."))
    spread.check()
    if spread.starts_others:
        start_ranks(spread, [*sys.argv[1:], *_named_folder(given, resume=goes_on, needed=spread.max_restarts > 0)])
        return
    with as_rank() as place:
        again = place.restarts > 0
        if again:
            _require_named_folder(given)
        _train(given, replace(begin, resume=begin.resume or again, overwrite=begin.overwrite and not again), as_json)


def _require_named_folder(given: ConfigOptions) -> None:
    """Refuse to go on with a run that a launcher starts again where its folder has no name by which it is found."""
    if given.load().training.output_dir is None:
        message = "the processes were started again, and which run they go on with is not said"
        raise ConfigError(message, key="training.output_dir", remedy="name the run's folder")


def _named_folder(given: ConfigOptions, *, resume: bool, needed: bool) -> list[str]:
    """The override that names the run's folder, where processes that are started again have to find it."""
    if given.load().training.output_dir is not None or not needed:
        return []
    from loraft.config.config_file import inline
    from loraft.training.run_dir import choose_run_folder

    return [f"training.output_dir={inline(str(choose_run_folder(None, given.name, resume=resume)))}"]


def _train(given: ConfigOptions, begin: BeginningOptions, as_json: bool) -> None:
    goes_on = begin.resume or begin.resume_anyway
    config = given.read()
    with watching("train") as view:
        from loraft.tasks import TASKS

        result = api.train(
            config,
            name=given.name,
            resume=goes_on,
            resume_anyway=begin.resume_anyway,
            overwrite=begin.overwrite,
            trust_remote_code=given.trust_remote_code,
            observer=view,
            command=["loraft", *sys.argv[1:]],
        )
    if as_json:
        print_json(result.as_dict())
    else:
        shown = {key: value for key, value in result.as_dict().items() if key != "report" or value is not None}
        print_document(TASKS[config.task].summary_of_result(shown), rest="run")
        print_try_it(config.task, str(result.run_folder), result.saved)


@dataclass(frozen=True)
class CheckOptions:
    """For which device a run is planned, and how much is told."""

    device: Literal["cpu", "cuda"] | None = option(None, "Plan for it [default: this machine's].")
    gpu_memory: int | None = option(
        "SIZE", "Plan for a CUDA GPU of so much memory, such as 24GB or 24GiB.", parser=size_in_bytes
    )
    gpu_name: str | None = option(
        "NAME", "Plan for this CUDA GPU, such as 'RTX 4090' or H100-SXM, and predict how long steps take there."
    )
    num_processes: int = option("N", "Plan for N processes a machine, one a GPU.", default=1, min=1)
    num_machines: int = option("M", "Plan for M machines that train together.", default=1, min=1)
    fit: int | None = option(
        "SIZE",
        "Write CONFIG-fit.yaml, changed where it costs the least speed so that it fits into such a GPU.",
        parser=size_in_bytes,
    )
    measure: int = option(
        "N", "Take so many steps too, to tell how long all of them take; nothing is kept.", default=0, min=0
    )
    verbose: bool = flag("Name each row that stands in the data twice, with file and line.")


def check(given: ConfigOptions, told: CheckOptions, as_json: JsonOption = False) -> None:
    """Tell everything that can be known before training.

    Config, files, rows, model, adapter targets, memory and steps, without loading a weight. Exit code 2 with every
    problem found, where training would be refused, and with the changes that make a run fit into memory.
    """
    planned, several = (
        told.device or told.gpu_memory or told.gpu_name or told.fit,
        told.num_processes * told.num_machines > 1,
    )
    refuse(
        (told.device == "cpu" and (told.gpu_memory or told.fit), "--device cpu has no GPU memory: leave one out."),
        (told.device == "cpu" and told.gpu_name, "--device cpu is no GPU: leave one out."),
        (told.measure and planned, "--measure measures this machine alone."),
        (told.measure and several, "--measure measures one process: leave --num-processes and --num-machines out."),
        (told.fit and several, "--fit writes a config for one GPU: leave --num-processes and --num-machines out."),
        (told.gpu_memory and told.fit, "--fit says the memory itself: leave --gpu-memory out."),
        (told.gpu_name and told.fit, "--fit says the memory itself: leave --gpu-name out."),
    )
    config = given.read()
    if told.fit is not None:
        _write_fitting(given, config, told.fit, as_json=as_json)
        return
    begun = watching("check") if told.measure else waiting("loading libraries, then model and rows")
    with begun as view:
        report = api.check(
            config,
            name=given.name,
            verbose=told.verbose,
            device=told.device,
            gpu_memory=told.gpu_memory,
            gpu_name=told.gpu_name,
            num_processes=told.num_processes,
            num_machines=told.num_machines,
            measure=told.measure,
            observer=view or ignored,
            trust_remote_code=given.trust_remote_code,
        )
    print_note(*report.notes)
    if as_json:
        print_json(report.as_dict())
    else:
        print_document(_shown(report.as_dict(), has_adapter=config.method != "full"), rest="run")


def _write_fitting(given: ConfigOptions, config: RunConfig, memory: int, *, as_json: bool) -> None:
    """Write the config beside itself that fits into a GPU of so many bytes, where it does not fit as it is."""
    with waiting("loading libraries, then model and rows"):
        fitting = api.fit_memory(config, gpu_memory=memory, trust_remote_code=given.trust_remote_code)
    peak, there = fitting.plan.memory.peak_bytes, fitting.plan.placement.available_bytes
    if fitting.changes:
        text = given.changed(fitting.changes)
        written = given.beside("fit", lambda file: file.read_bytes() == text.encode())
        write_whole(written, text)
        fits, said = str(written), f"wrote {written}, which fits with {fitting.words}"
    else:
        fits, said = given.config, f"{given.config} fits as it is: {peak / 1e9:.1f} of {there / 1e9:.1f} GB"
    found = {"fits": fits, "changes": fitting.changes, "costs": fitting.costs}
    print_either({**found, "peak_bytes": peak, "available_bytes": there}, [said], as_json=as_json)


def _shown(report: dict[str, Any], *, has_adapter: bool) -> dict[str, Any]:
    """A report without what was told before it, and without a part that is called adapter where there is none."""
    for source in report.get("data", {}).get("sources", ()):
        source.pop("findings", None)
    if not has_adapter:
        report["memory"].pop("adapter", None)
    names = {} if has_adapter else {"adapter": "trained"}
    return {names.get(key, key): part for key, part in report.items() if key != "notes"}


@dataclass(frozen=True)
class PreviewOptions:
    """Which rows are shown, and how."""

    count: int = option("N", "How many rows, from the first.", "--count", "-n", default=5, min=1)
    split: Literal["train", "eval"] = option(None, "The rows that are trained on, or those held out.", default="train")
    places: list[str] | None = option(
        "PLACE",
        "A row by its line or number, or by its place as loraft prints it, such as train.jsonl:17; and why, where it "
        "is left out. May be given several times.",
        "--row",
    )
    whole: bool = flag("Show every token of long rows.")
    html: Path | None = option("FILE", "Write a page to share instead: one file, no scripts.")
    overwrite: bool = flag("Replace FILE even if it is no page of this command.")


def preview(given: ConfigOptions, show: PreviewOptions, as_json: JsonOption = False) -> None:
    """Show rows as the model will see them.

    Each token by itself, what of the row is learned, special tokens by name, which rows share a batch and where one
    ends; of an encoder-decoder source and target, of a classifier the class. Rows that were dropped are counted, with
    the reason. Only the tokenizer and the data are read, no weights.
    """
    config = given.read()
    html, path = show.html, Path(given.config)
    if html is not None:
        check_page(html, config, path, overwrite=show.overwrite)
    with waiting("reading the rows"):
        seen = api.preview(
            config,
            count=show.count,
            split=show.split,
            places=show.places or (),
            trust_remote_code=given.trust_remote_code,
        )
    print_note(*seen.notes)
    if html is not None:
        write_page(seen, html, path.name)
    if as_json:
        print_json({**seen.as_dict(), **({"html": str(html)} if html is not None else {})})
    elif html is not None:
        print_result(f"wrote {html}: {len(seen.rows)} row{'s' * (len(seen.rows) != 1)}")
    else:
        print_result(*render_preview(seen, shaded=has_shades(console_on(sys.stdout)), whole=show.whole))

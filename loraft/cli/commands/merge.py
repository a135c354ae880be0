"""`loraft merge`: an adapter into its base, and the proof that it is there."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loraft.cli.next_command import try_it
from loraft.cli.options import BaseModelOption, JsonOption
from loraft.cli.runner import handle_errors
from loraft.cli.wording import with_options
from loraft.config.choices import TASK_OF_GROUP

if TYPE_CHECKING:
    from loraft.merging.merge_report import MergeReport


@handle_errors
def merge(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            show_default=False,
            help="An adapter, a run, a checkpoint or a config; beside --adapter the base, which may be left out.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT", show_default=False, help="The folder to write [default: merged, beside the adapter]."
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="DIR[=WEIGHT]",
            show_default=False,
            help="An adapter (folder, run, Hub id) and how much of it; several are summed.",
        ),
    ] = None,
    base: Annotated[
        Literal["original", "dequantized"] | None,
        typer.Option(
            "--base",
            show_default=False,
            help="The base as its files have it, or as 4-bit training saw it [default: as trained].",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="Of the merged weights; auto is that of the base's files."),
    ] = "auto",
    base_model: BaseModelOption = None,
    no_verified: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the merged model with the adapted one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the merged model that OUT holds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fold an adapter into its base, and prove that it is the model that was trained.

    The weights are read and written tensor by tensor. Then the adapted and the merged model read the same text: where
    they differ too much, OUT does not appear and the exit code is 3. OUT loads in transformers and in servers, and is a
    TARGET like any other.
    """
    if target is None and not adapters:
        raise typer.BadParameter("Name a TARGET, or an --adapter that brings its base.")
    target, out = _places(target, out, adapters)

    from loraft.cli.console import console_on, print_json, print_note, waiting
    from loraft.cli.views.progress import view_on

    with waiting("loading libraries"):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        report = api.merge(
            target,
            out,
            adapters or (),
            base=base,
            dtype=dtype,
            base_model=base_model,
            verified=not no_verified,
            overwrite=overwrite,
            observer=view,
        )
    for warning in report.warnings:
        print_note(warning)
    if as_json:
        print_json({"out": report.out, **with_options(report.as_dict(), "warnings")})
    else:
        _show(report)


def _places(target: str | None, out: str | None, adapters: list[str] | None) -> tuple[str | None, str | None]:
    """The base and the folder to write: a single word beside `--adapter` may be either."""
    if target is None or out is not None or not adapters:
        return target, out

    from loraft.merging.adapter_weights import means_a_base

    return (target, None) if means_a_base(target, adapters) else (None, target)


def _show(report: MergeReport) -> None:
    from loraft.cli.console import print_result
    from loraft.cli.text_tables import facts

    adapters = [f"{each['name']} × {each['weight']:g}" for each in report.adapters]
    print_result(
        facts(
            "merged",
            {
                "out": report.out,
                "base model": report.base_model,
                "base": f"{report.base}: {report.why_this_base}",
                "adapters": adapters,
                "changed tensors": report.changed_tensors,
                **({"untied": report.untied} if report.untied else {}),
                "dtype": report.dtype,
                "weights_bytes": report.weights_bytes,
                "merged in": f"{report.merge_seconds:.1f} s",
            },
            label_width=30,
        )
    )
    if report.verified:
        print_result(facts("verified", _measured(report), label_width=30))
    task = TASK_OF_GROUP["classifier" if report.labels else "decoder"]
    print_result(f"Try it:  {try_it(task, str(report.out))}")


def _measured(report: MergeReport) -> dict[str, object]:
    return {
        "positions": f"{report.positions:,} of {report.measured_on}",
        f"largest difference of {report.compared}": f"{report.max_abs_logit_difference:.3g}",
        "KL(adapted ‖ merged)": f"{report.kl_adapted_merged:.3g}",
        "KL(adapted ‖ base)": f"{report.kl_adapted_base:.3g}",
        f"same likeliest {'class' if report.labels else 'token'}": f"{100 * (report.top1_agreement or 0):.2f} %",
    }

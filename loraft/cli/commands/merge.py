"""`loraft merge`: an adapter into its base, and the proof that it is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraft import api
from loraft.cli.console import print_either, print_note
from loraft.cli.options import JsonOption, argument, flag, option, refuse, trust_flag
from loraft.cli.text_tables import print_try_it
from loraft.cli.views.progress import watching
from loraft.cli.views.written_view import merge_view
from loraft.config.choices import TASK_OF_GROUP


@dataclass(frozen=True)
class FoldOptions:
    """What is folded into what."""

    target: str | None = argument(
        "TARGET",
        "An adapter, a run, a checkpoint or a config; beside --adapter the base, which may be left out.",
        default=None,
    )
    out: str | None = argument("OUT", "The folder to write [default: merged, beside the adapter].", default=None)
    adapters: list[str] | None = option(
        "DIR[=WEIGHT]", "An adapter (folder, run, Hub id) and how much of it; several are summed.", "--adapter"
    )
    base: Literal["original", "dequantized"] | None = option(
        None, "The base as its files have it, or as 4-bit training saw it [default: as trained]."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        None, "Of the merged weights; auto is that of the base's files.", default="auto"
    )
    base_model: str | None = option("MODEL", "The base to use, whatever the adapter names.")
    trust_remote_code: bool = trust_flag()
    no_verified: bool = flag("Do not compare the merged model with the adapted one.", "--no-verify")
    overwrite: bool = flag("Replace the merged model that OUT holds.")


def merge(given: FoldOptions, as_json: JsonOption = False) -> None:
    """Fold an adapter into its base, and prove that it is the model that was trained.

    The weights are read and written tensor by tensor. Then the adapted and the merged model read the same text: where
    they differ too much, OUT does not appear and the exit code is 3. OUT loads in transformers and in servers, and is a
    TARGET like any other.
    """
    refuse((given.target is None and not given.adapters, "Name a TARGET, or an --adapter that brings its base."))
    with watching("merge") as view:
        from loraft.models.remote_code import trusting

        with trusting(given.trust_remote_code):
            target, out = _places(given.target, given.out, given.adapters)
        report = api.merge(
            target,
            out,
            given.adapters or (),
            base=given.base,
            dtype=given.dtype,
            base_model=given.base_model,
            trust_remote_code=given.trust_remote_code,
            verified=not given.no_verified,
            overwrite=given.overwrite,
            observer=view,
        )
    print_note(*report.warnings)
    told = {"out": report.out, **report.as_dict()}
    print_either(told, merge_view(told), as_json=as_json)
    if not as_json:
        print_try_it(TASK_OF_GROUP["classifier" if report.labels else "decoder"], str(report.out), report.out)


def _places(target: str | None, out: str | None, adapters: list[str] | None) -> tuple[str | None, str | None]:
    """The base and the folder to write: a single word beside `--adapter` may be either."""
    if target is None or out is not None or not adapters:
        return target, out

    from loraft.merging.write_weights import means_a_base

    return (target, None) if means_a_base(target, adapters) else (None, target)

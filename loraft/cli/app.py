"""The program `loraft`: its commands by name."""

from __future__ import annotations

from typing import Annotated

import typer

from loraft.cli.silence import silence_libraries
from loraft.cli.unknown_options import HelpfulGroup
from loraft.version import __version__

app = typer.Typer(
    name="loraft",
    cls=HelpfulGroup,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loraft {__version__}")
        raise typer.Exit


@app.callback()
def _general_options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Let through what the libraries below log and warn.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Fine-tune Hugging Face models with LoRA and QLoRA from one YAML file.

    Results go to standard output, progress and messages to standard error. Exit codes: 0 done, 2 refused, 3 failed
    while running, 130 and 143 stopped with the state saved.
    """
    if not verbose:
        silence_libraries()

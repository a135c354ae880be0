"""The program `loraft`: its commands by name."""

from __future__ import annotations

from typing import Annotated

import typer

from loraft.cli.commands import chat
from loraft.cli.commands import doctor as setup
from loraft.cli.commands import evaluate as evaluation
from loraft.cli.commands import generate as generation
from loraft.cli.commands import init as starting
from loraft.cli.commands import inspect_layers as inspection
from loraft.cli.commands import merge as merging
from loraft.cli.commands import predict as prediction
from loraft.cli.commands import preview as previewing
from loraft.cli.commands import train as training
from loraft.cli.silence import silence_libraries
from loraft.cli.unknown_options import HelpfulCommand, HelpfulGroup
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


app.command(cls=HelpfulCommand)(starting.init)
app.command(cls=HelpfulCommand)(training.check)
app.command(cls=HelpfulCommand)(previewing.preview)
app.command(cls=HelpfulCommand)(training.train)
app.command(cls=HelpfulCommand, short_help="Measure a model on rows that it has not learned.")(evaluation.evaluate)
app.command(cls=HelpfulCommand, short_help="Fold an adapter into its base, and prove the result.")(merging.merge)
app.command(cls=HelpfulCommand, short_help="Answer prompts with a base, or with what was trained.")(generation.generate)
app.command(cls=HelpfulCommand)(chat.chat)
app.command(cls=HelpfulCommand, short_help="Tell the classes of texts, by a trained classifier.")(prediction.predict)
app.command(cls=HelpfulCommand, short_help="Tell how a model is built, and what an adapter changed.")(
    inspection.inspect_layers
)
app.command(cls=HelpfulCommand)(setup.schema)
app.command(cls=HelpfulCommand)(setup.doctor)

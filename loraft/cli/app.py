"""The program `loraft`: its commands by name, each of which is loaded when it is asked for."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from loraft.cli.command_table import COMMANDS, function_of
from loraft.cli.silence import silence_libraries
from loraft.cli.unknown_options import COMMANDS_ELSEWHERE, HelpfulCommand
from loraft.version import __version__


def _loaded(name: str) -> Any:
    """The command of a name; its options are made only now."""
    from loraft.cli.runner import handle_errors

    alone = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, cls=HelpfulCommand)(handle_errors(function_of(name)))
    return typer.main.get_command(alone)


class CommandGroup(TyperGroup):
    """The commands; one that there is not is answered with ours."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": dict.fromkeys(COMMANDS)})

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """The command, loaded."""
        return _loaded(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The list of commands, for which none of them is loaded."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[Any, Any, list[str]]:  # type: ignore[override]
        """As typer does it, with other tools' words known."""
        ours = COMMANDS_ELSEWHERE.get(args[0].lower()) if args else None
        if ours is not None and args[0] not in self.commands:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{ours}'?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="loraft",
    cls=CommandGroup,
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

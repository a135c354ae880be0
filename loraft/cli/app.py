"""The program `loraft`: its commands by name, each of which is loaded when it is asked for."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from loraft.cli.wording import COMMANDS, function_of
from loraft.version import __version__

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a command line that is wrong, wherever it keeps the class."""


class HelpfulCommand(TyperCommand):
    """A command that answers an unknown option with the nearest, or with the key=value that it is here."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """As typer does it."""
        words = list(args)  # parsing takes them out of `args`
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            if not hasattr(error, "possibilities"):  # any other mistake
                raise
            wrong = str(getattr(error, "option_name", ""))
            known = [name for parameter in self.params for name in parameter.opts if name.startswith("--")]
            override = _override(wrong, words) if any(each.name == "overrides" for each in self.params) else None
            if override is not None:
                raise typer.BadParameter(f"No such option: {wrong}. Write {override} after the config.", ctx) from None
            error.possibilities = _near(wrong, known)
            raise


def _near(wrong: str, known: Iterable[str]) -> list[str]:
    """What begins as `wrong` does; else what holds its word, and else what is spelt alike."""
    known = [name for name in known if name != "--help"]
    word = wrong.lstrip("-").replace("_", "-")
    begin = [name for name in known if name.startswith(f"--{word}")]
    hold = [name for name in known if word in name.removeprefix("--").split("-")]
    return begin or hold or get_close_matches(f"--{word}", known)


def _override(wrong: str, words: Sequence[str]) -> str | None:
    """The key=value that an unknown option with its value would be, where it is called as a key of the config is."""
    from loraft.config.aliases import SAME_VALUE
    from loraft.config.schema_info import expected, keys_of, path_of, places_of

    name = wrong.lstrip("-").replace("-", "_")
    places = (name,) if "." in name and expected(path_of(name)) else places_of(name)
    found = places or ((SAME_VALUE[name],) if name in SAME_VALUE else ())
    keys = [place for place in found if "." in place or not keys_of((place,))]
    return " or ".join(f"{key}={_value(wrong, words)}" for key in keys) or None


def _value(wrong: str, words: Sequence[str]) -> str:
    """What was written behind the option, or three dots."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        name, equals, value = word.partition("=")
        if name == wrong:
            return value if equals else "…" if following.startswith("-") else following
    return "…"


QUIET_ENVIRONMENT = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def silence_libraries() -> None:
    """Silences warnings and logging below errors; what the user set in the environment stays."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


class CommandGroup(TyperGroup):
    """The commands; one that there is not is answered with ours."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": dict.fromkeys(COMMANDS)})

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """The command, loaded; its options are made only now."""
        if cmd_name not in COMMANDS:
            return None
        from loraft.cli.runner import handle_errors

        alone = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
        alone.command(cmd_name, cls=HelpfulCommand)(handle_errors(function_of(cmd_name)))
        return typer.main.get_command(alone)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The list of commands, for which none of them is loaded."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[Any, Any, list[str]]:  # type: ignore[override]
        """As typer does it, with other tools' words known."""
        if args and args[0] not in self.commands:
            from loraft.config.aliases import COMMANDS_ELSEWHERE

            if ours := COMMANDS_ELSEWHERE.get(args[0].lower()):
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

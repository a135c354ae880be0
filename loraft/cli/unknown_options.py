"""Commands and options that do not exist, answered with what was meant: an option, a command or a config key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import typer
from typer.core import TyperCommand

COMMANDS_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("sft", "finetune", "fine-tune", "fine_tune", "fit", "tune", "lora", "qlora", "full", "resume", "run"), "train"
    ),
    **dict.fromkeys(("infer", "inference", "ask", "complete", "completion", "answer", "prompt"), "generate"),
    **dict.fromkeys(("eval", "test", "benchmark", "bench", "score", "measure"), "evaluate"),
    **dict.fromkeys(("classify", "label"), "predict"),
    **dict.fromkeys(("export", "fuse", "save"), "merge"),
    **dict.fromkeys(("validate", "verify", "lint", "dry-run", "estimate", "plan"), "check"),
    **dict.fromkeys(("new", "create", "config", "configure", "start", "setup"), "init"),
    **dict.fromkeys(("inspect", "layers", "info", "show"), "inspect-layers"),
    **dict.fromkeys(("env", "diagnose", "system"), "doctor"),
    **dict.fromkeys(("repl", "talk"), "chat"),
    **dict.fromkeys(("view", "rows", "preprocess", "tokenize"), "preview"),
}
"""What other tools call our commands."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a command line that is wrong, wherever it keeps the class."""


class HelpfulCommand(TyperCommand):
    """A command that answers an unknown option with the nearest, or with the key=value that it is here."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """As typer does it, which takes the words out of `args` on the way."""
        words = list(args)
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
    found = places or tuple(filter(None, [SAME_VALUE.get(name)]))
    keys = [place for place in found if "." in place or not keys_of((place,))]
    return " or ".join(f"{key}={_value(wrong, words)}" for key in keys) or None


def _value(wrong: str, words: Sequence[str]) -> str:
    """What was written behind the option, or three dots."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        name, equals, value = word.partition("=")
        if name == wrong:
            return value if equals else "…" if following.startswith("-") else following
    return "…"

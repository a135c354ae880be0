"""`docs/commands/` has a page for each command, with the help that it prints, word for word.

To write the help anew, and a page for a command that has none: `python -m tests.cli.test_commands_page`. What else
stands on a page is written by hand and left as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from loraft.cli.app import app

FOLDER = Path(__file__).parents[2] / "docs/commands"
INDEX = FOLDER / "index.md"
GROUP: Any = get_command(app)
COMMANDS: list[str] = GROUP.list_commands(GROUP.make_context("loraft", [], resilient_parsing=True))
HELP = re.compile(r"^```text\n.*?^```\n", re.DOTALL | re.MULTILINE)
LINKS = re.compile(r"^- \[`loraft .*\n(?:^- \[`loraft .*\n)*", re.MULTILINE)


def help_of(*words: str) -> str:
    """What `--help` prints, as a block of a page."""
    with mock.patch.dict(os.environ, {"COLUMNS": "100", "TERMINAL_WIDTH": "100"}):
        text = CliRunner().invoke(app, [*words, "--help"], prog_name="loraft").stdout
    return f"```text\n{text.strip()}\n```\n"


def links() -> str:
    """A line for each command: its page, and what it is for in a few words."""
    shorts = dict(re.findall(r"^  ([a-z-]+)  +(\S.*)$", help_of().partition("Commands:")[2], re.MULTILINE))
    return "".join(f"- [`loraft {name}`]({name}.md): {shorts[name]}\n" for name in COMMANDS)


def page_of(name: str, text: str) -> str:
    """The page of a command with the help that is so, in place of its first block of text."""
    text = text or f"# loraft {name}\n\n```text\n```\n"
    return HELP.sub(lambda _: help_of(name), text, count=1)


def index_of(text: str) -> str:
    """The page of all commands, with the links and the help that are so."""
    return HELP.sub(lambda _: help_of(), LINKS.sub(lambda _: links(), text, count=1), count=1)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_what_help_prints(name: str) -> None:
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# loraft {name}\n")
    assert help_of(name) in text
    assert text == page_of(name, text)


def test_the_index_names_every_command() -> None:
    text = INDEX.read_text(encoding="utf-8")
    assert links() in text
    assert help_of() in text
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted([*COMMANDS, "index"])


if __name__ == "__main__":
    INDEX.write_text(index_of(INDEX.read_text(encoding="utf-8")), encoding="utf-8")
    for command in COMMANDS:
        page = FOLDER / f"{command}.md"
        page.write_text(page_of(command, page.read_text("utf-8") if page.exists() else ""), encoding="utf-8")

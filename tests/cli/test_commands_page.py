"""`docs/commands.md` is the help of every command, word for word.

To write it anew: `python -m tests.cli.test_commands_page`.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from typer.testing import CliRunner

from loraft.cli.app import app

PAGE = Path(__file__).parents[2] / "docs/commands.md"
COMMANDS = [
    "",
    "init",
    "check",
    "preview",
    "train",
    "evaluate",
    "merge",
    "generate",
    "chat",
    "predict",
    "inspect-layers",
    "schema",
    "doctor",
]
INTRODUCTION = """\
# The commands

Each page below is what `--help` prints. Results go to standard output; progress, notes and errors go to standard
error. `--json` prints one JSON document instead of tables; when a command is refused or fails, the document holds
`problems` (each with `where`, `key`, `message`, `remedy`) and `exit_code`.

| exit code | means |
|---|---|
| 0 | done |
| 1 | a bug in loraft, with its traceback |
| 2 | refused: config, data, paths or arguments are wrong, or a batch or a disk is foreseen to be too small |
| 3 | failed while running: a non-finite loss, memory or disk ran out |
| 130, 143, 129 | stopped by SIGINT (Ctrl-C), SIGTERM or SIGHUP; a run's state is saved, `--resume` goes on |
| 141 | whoever read standard output went away |

A second signal ends `loraft train` at once, with nothing saved; SIGUSR1 has it save a checkpoint after the step that it
is at, and go on.
"""


def page() -> str:
    parts = [INTRODUCTION]
    with mock.patch.dict(os.environ, {"COLUMNS": "100", "TERMINAL_WIDTH": "100"}):
        for command in COMMANDS:
            words = [command] if command else []
            text = CliRunner().invoke(app, [*words, "--help"], prog_name="loraft").stdout
            parts.append(f"## {' '.join(['loraft', *words])}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(parts)


def test_the_page_is_what_help_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

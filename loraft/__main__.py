"""`python -m loraft`, and the `loraft` command."""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    from loraft.cli.app import app

    app(prog_name="loraft")


if __name__ == "__main__":
    main()

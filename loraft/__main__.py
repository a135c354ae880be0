"""`python -m loraft`, and the `loraft` command."""

from __future__ import annotations

import io
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    try:
        from loraft.cli.app import app

        app(prog_name="loraft")
    except KeyboardInterrupt:  # before a command has begun, which ends in its own way
        print("stopped.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()

"""`python -m loraft`, and the `loraft` command."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    if sys.stderr is None:  # closed, as by 2>&-: messages go nowhere, and the exit code says how it ended
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    try:
        from loraft.cli.app import app
        from loraft.cli.console import StandardOutput
        from loraft.cli.runner import end_with
        from loraft.errors import LoraftError

        if sys.stdout is None:
            print("error: standard output is closed: send it somewhere, to /dev/null too", file=sys.stderr)
            sys.exit(2)
        if type(sys.stdout) is io.TextIOWrapper:  # Python's own, which nobody else has taken
            sys.stdout = StandardOutput.over(sys.stdout)
        try:
            app(prog_name="loraft")
        except LoraftError as error:  # of what belongs to no command: help, and the version
            sys.exit(end_with(error, error.problems))
    except KeyboardInterrupt:  # before a command has begun, which ends in its own way
        print("stopped.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()

"""A conversation with a person at a terminal: edited lines, completed commands, and what Ctrl-C and Ctrl-D mean."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from loraft.cli.console import print_message
from loraft.cli.interrupts import pass_on_unless_ctrl_c


def read_line(prompt: str) -> str | None:
    """A line that a person typed, None at the end of all; the first Ctrl-C says what a second one does.

    Raises:
        KeyboardInterrupt: At the second Ctrl-C with no line between them.
        UnicodeDecodeError: The line is no text.
    """
    for last in (False, True):
        try:
            return _asked(prompt)
        except EOFError:
            sys.stderr.write("\n")
            return None
        except KeyboardInterrupt as stop:
            sys.stderr.write("\n")
            if last:
                raise
            pass_on_unless_ctrl_c(stop)
            print_message("Ctrl-C once more ends, as Ctrl-D does.")
    return None


def _asked(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextmanager
def first_interrupt_noted() -> Iterator[list[int]]:
    """The first Ctrl-C is only noted, for the answer to end at its next token; a second one interrupts."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def line_editing(words: Sequence[str]) -> Iterator[None]:
    """Editing, history and completion of `words` at the start of a line, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return

    def complete(beginning: str, index: int) -> str | None:
        found = [word for word in words if beginning and word.startswith(beginning)]
        return found[index] if index < len(found) else None

    before, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims("\n")
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before)
        readline.set_completer_delims(delimiters)

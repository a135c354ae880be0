"""`loraft chat`: a conversation, on a terminal or from a pipe with one message a line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from loraft import api
from loraft.cli.commands.chat_commands import ACTIONS, COMMANDS, SETTINGS, parse_line
from loraft.cli.console import is_unicode, print_message, print_note, print_problems, printable, say, waiting
from loraft.cli.options import AnswerOptions, option
from loraft.cli.runner import pass_on_unless_ctrl_c
from loraft.cli.text_tables import as_count
from loraft.cli.wording import by_options
from loraft.errors import DataError, InvalidInputError, OutOfMemoryError
from loraft.figures import counted
from loraft.io.signals import signals_to

if TYPE_CHECKING:
    from loraft.inference.conversation import ChatSession, ChatStream


def read_line(prompt: str) -> str | None:
    """A line that a person typed, None at the end of all; the first Ctrl-C says that a second one ends."""
    try:
        return _asked(prompt)
    except KeyboardInterrupt as stop:
        sys.stderr.write("\n")
        pass_on_unless_ctrl_c(stop)
        print_message("Ctrl-C once more ends, as Ctrl-D does.")
    try:
        return _asked(prompt)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise


def _asked(prompt: str) -> str | None:
    """A line as it was typed; where it is no text, what is refused later as any other such line."""
    try:
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        if line := sys.stdin.readline():
            return line
    except UnicodeDecodeError:
        return "\udcff"
    except EOFError:
        pass
    sys.stderr.write("\n")
    return None


@contextmanager
def first_interrupt_noted() -> Iterator[list[int]]:
    """The first Ctrl-C is only noted, for the answer to end at its next token; a second one interrupts."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    with signals_to(note, signal.SIGINT):
        yield noted


def edit_lines(words: Sequence[str]) -> None:
    """Lines are edited from here on, with `words` completed at their start, where Python has readline."""
    try:
        import readline
    except ImportError:
        return

    def complete(beginning: str, index: int) -> str | None:
        found = [word for word in words if beginning and word.startswith(beginning)]
        return found[index] if index < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims("\n")
    readline.parse_and_bind("tab: complete")


BEGIN_ANEW = "/reset begins a new conversation, /undo takes the last turn back."


@dataclass(frozen=True)
class TalkOptions(AnswerOptions):
    """What talks, and how; where no seed is given each conversation has its own."""

    seed: int | None = option("N", "The seed of sampling [default: any].", min=0, max=2**32 - 1)


def chat(
    asked: Annotated[
        TalkOptions,
        "target adapters base_model quantize dtype trust_remote_code system max_new_tokens temperature top_p top_k "
        "seed",
    ],
) -> None:
    """Talk with a base model, or with what was trained.

    The history stays in the cache: each turn only what is new is read. /help lists the commands: /system, /reset,
    /undo, /adapter, /set, /save, /quit. Ctrl-C stops an answer, Ctrl-D ends. From a pipe each line is a message, and
    the exit code is 2 where one was refused.
    """
    model = asked.model  # refused before anything is loaded
    with waiting("loading libraries and model"):
        conversation = api.open_chat(model, options=asked.generation)
    print_note(*conversation.notes)
    raise typer.Exit((_OnTerminal if sys.stdin.isatty() else _FromPipe)(conversation).run())


class _FromPipe:
    """A conversation whose lines come from a file or a program; a Ctrl-C ends it."""

    def __init__(self, conversation: ChatSession) -> None:
        self.conversation = conversation
        self._long_told = False

    def run(self) -> int:
        """Takes lines until there are no more, or one says so; the exit code tells the worst that was refused."""
        exit_code = 0
        while (line := self._line()) is not None:
            if not line.strip():
                continue
            try:
                if not is_unicode(line):
                    raise InvalidInputError("the message is not UTF-8 text")
                command, words = parse_line(line.strip())
                if command == "/quit":
                    return exit_code
                if command:
                    self._do(command, words)
                else:
                    self._answer(words)
            except (InvalidInputError, OutOfMemoryError) as error:
                exit_code = max(exit_code, error.exit_code)
                print_problems(map(by_options, error.problems))
                if isinstance(error, OutOfMemoryError):
                    print_message(BEGIN_ANEW)
        return exit_code

    def _line(self) -> str | None:
        raw = sys.stdin.buffer.readline()
        return raw.decode("utf-8", errors="surrogateescape") if raw else None

    def _answer(self, text: str) -> None:
        reply = self._ask(text)
        for piece in _pieces(reply):
            _write(piece)
        _write("\n")
        self._tell_end(reply)

    def _ask(self, text: str) -> ChatStream:
        with redirect_stdout(sys.stderr):
            try:
                return self.conversation.ask(text)
            except DataError as error:
                raise DataError(error.problems[0].message, remedy=BEGIN_ANEW) from error

    def _tell_end(self, reply: ChatStream) -> None:
        """How long the answer was, what was read for it, and whether there is room for another."""
        if (whole := reply.completion) is None:
            return
        tokens = len(whole.token_ids)
        figures = [
            counted(tokens, "token"),
            f"{as_count(reply.prompt_tokens - reply.held)} of {as_count(reply.prompt_tokens)} read",
        ]
        if whole.decode_tokens_per_second is not None:
            figures.append(f"{whole.decode_tokens_per_second:.1f} tokens/s")
        if not tokens:
            figures.append("an empty answer")
        positions, length = self.conversation.positions, reply.prompt_tokens + tokens
        full = positions is not None and length > positions
        if whole.finish_reason == "length" and not full:
            figures.append("cut at the limit (/set max_new_tokens=N)")
        say((" · ".join(figures), "dim"))
        if full and positions is not None:
            print_note(f"the conversation fills the {positions:,} positions that the model has learned; {BEGIN_ANEW}")
        trained = self.conversation.trained_length
        if trained is not None and length > trained and not self._long_told:
            self._long_told = True
            print_note(f"the conversation is longer than the {trained:,} tokens that the model was trained for")

    def _do(self, command: str, words: str) -> None:
        with redirect_stdout(sys.stderr):
            for line in ACTIONS[command](self.conversation, words):
                print_message(line)


class _OnTerminal(_FromPipe):
    """A conversation with a person: lines are edited, Ctrl-C stops an answer, twice at the prompt it ends."""

    def run(self) -> int:
        """Greets, and takes lines until the person ends it, who has seen what was refused."""
        session = self.conversation.session
        voices = (f"/adapter {name}" for name in (*session.adapters, "none"))
        settings = (f"/set {name}=" for name in SETTINGS)
        edit_lines([*COMMANDS, *voices, *settings])
        say((f"{session.loaded.name} · /help lists the commands, Ctrl-D ends", "dim"))
        super().run()
        return 0

    def _line(self) -> str | None:
        return read_line(f"{self.conversation.voice.name}> " if self.conversation.session.adapters else "> ")

    def _answer(self, text: str) -> None:
        show = printable if sys.stdout.isatty() else str
        try:
            with first_interrupt_noted() as interrupts:
                reply = self._ask(text)
                given = False
                for piece in _pieces(reply):
                    _write(show(piece))
                    given = given or bool(piece)
                    if interrupts:
                        reply.stop()
                        break
        except KeyboardInterrupt as stop:
            pass_on_unless_ctrl_c(stop)
            _write("\n")
            print_message("stopped; the question is taken back.")
            return
        _write("\n")
        if reply.completion is None:
            what = "what was said so far stays, /undo takes it back" if given else "the question is taken back"
            print_message(f"stopped: {what}.")
        self._tell_end(reply)


def _pieces(reply: ChatStream) -> Iterator[str]:
    """The text of an answer as it comes; what libraries print meanwhile goes to standard error."""
    while True:
        with redirect_stdout(sys.stderr):
            token = next(reply, None)
        if token is None:
            return
        yield token.text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

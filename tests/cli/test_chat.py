"""`loraft chat` as a person and as a script use it: real processes, a pipe or a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import become, loraft
from tests.inference.voices import adapter_in, base_in
from tests.words import Wording

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    base = base_in(folder / "base")
    adapter_in(folder / "a", base, system_prompt="Be brief.")
    adapter_in(folder / "b", base, seed=4)
    base_in(folder / "gpt2", "gpt2", max_position_embeddings=48)
    base_in(folder / "endless", max_position_embeddings=1_000_000)
    return folder


def talk(place: Path, *lines: str, words: tuple[str, ...] = ("base",), refused: bool = False) -> tuple[str, str]:
    """What a chat from a pipe says on its two streams; its exit code is 2 where a line was refused."""
    stdin = "".join(f"{line}\n" for line in lines)
    done = loraft("chat", *words, "--dtype", "float32", "--max-new-tokens", "4", cwd=place, stdin=stdin)
    assert done.returncode == (2 if refused else 0), done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def generated(place: Path, prompt: str, *words: str) -> str:
    done = loraft(
        "generate", *(words or ("base",)), "--dtype", "float32", "--max-new-tokens", "4", "-p", prompt, cwd=place
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_line_of_a_pipe_is_a_message_and_only_answers_are_on_standard_output(place: Path) -> None:
    stdout, stderr = talk(place, "the order", "", "   ", "/quit", "never said")
    assert stdout == generated(place, "the order")
    assert re.search(r"4 tokens · 15 of 15 read · [\d.]+ tokens/s", stderr)
    assert "\x1b" not in stderr


def test_the_history_is_not_read_again(place: Path) -> None:
    _, stderr = talk(place, "the order", "and the customer?", "/undo", "and the customer?")
    first, second, again = (tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+) read", stderr))
    assert first == (15, 15)
    assert second[0] <= second[1] - 15
    assert again[1] == second[1]
    assert again[0] < second[0]


@pytest.mark.slow
def test_an_adapter_answers_as_generate_does_and_voices_change(place: Path) -> None:
    adapters = ("--adapter", "a=a", "--adapter", "b=b")
    lines = ("hi", "/reset", "/adapter b", "hi", "/reset", "/adapter none", "hi", "/adapter", "/adapter c")
    stdout, stderr = talk(place, *lines, words=adapters, refused=True)
    expected = [generated(place, "hi", *words) for words in (("a",), ("b",), ("base",))]
    assert stdout == "".join(expected)
    assert len(set(expected)) == 3
    assert "* base (without an adapter; /adapter none)" in stderr
    assert "there is no adapter 'c' here\n  There is a, b, base." in stderr


def test_commands_say_what_they_did(place: Path) -> None:
    _, stderr = talk(
        place,
        "/undo", "/system", "/system Be kind.", "/system", 'the "order"', '/system ""', "/system", "/undo",
        "/set", "/set temperature=0.5 top_k=7", "/set temperature=none system=Be very kind.", "/help",
    )  # fmt: skip
    for told in (
        "nothing was said yet.",
        "there is no system prompt.",
        "system prompt set; the conversation goes on with it.\nBe kind.",
        "no system prompt from here on.\nthere is no system prompt.",
        'taken back: the "order"',
        "max_new_tokens      4\n",
        "temperature         0.5\n",
        "system              Be very kind.\n",
        "/save FILE.jsonl    write the conversation",
    ):
        assert told in stderr


@pytest.mark.parametrize(
    "line",
    [
        "/undoo",
        "/etc/passwd",
        "/set temperature=hot",
        "/set temperature=-1",
        "/set temperature=nan",
        "/set max_new_tokens=0",
        "/set max_new_tokens=1.5",
        "/set seed=-1",
        "/set temprature=1",
        "/set top_k",
        "/save",
        "/save talk",
        "/save talk.jsonl",
        "/save ~nobody-of-that-name/talk.jsonl",
    ],
)
def test_what_cannot_be_is_told_and_the_conversation_goes_on(place: Path, line: str, wording: Wording) -> None:
    stdout, stderr = talk(place, line, "the order", refused=True)
    wording("\n".join(line for line in stderr.splitlines() if not re.search(r" · |^note: device", line)))
    assert stdout


@pytest.mark.slow
def test_a_message_that_is_no_text_is_told(place: Path) -> None:
    command = [sys.executable, "-m", "loraft", "chat", "base", "--max-new-tokens", "4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=place, env=environment, input=b"\xff\xfe\nthe order\n", capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"error: the message is not UTF-8 text" in done.stderr
    assert done.stdout.count(b"\n") >= 1


def test_two_slashes_say_one(place: Path) -> None:
    assert talk(place, "//help")[0] == generated(place, "/help")


def test_a_saved_conversation_is_trained_on_and_never_written_over(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    _, stderr = talk(
        place, "/system Be kind.", "the order", "so?", f"/save {file}", "more", f"/save {file}", refused=True
    )
    assert f"2 answers saved in {file}" in stderr
    assert "is there already, and is left as it is" in stderr
    (row,) = map(json.loads, file.read_text().splitlines())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    data = "data: {train: talk.jsonl, eval: null, max_length: 256}"
    (tmp_path / "c.yaml").write_text(f"model: {{name_or_path: {place / 'base'}}}\n{data}\n")
    assert loraft("check", "c.yaml", cwd=tmp_path).returncode == 0


def test_a_full_context_is_told_with_what_helps(place: Path) -> None:
    words = ("gpt2", "--system", "")
    stdout, stderr = talk(
        place, "the order is late", "the customer said that the order is late", "so " * 60, words=words, refused=True
    )
    assert stdout.count("\n") >= 1
    assert "this model has learned 48 positions" in stderr
    assert "/reset begins a new conversation" in stderr
    assert "/reset" not in talk(place, "the order", "/reset", "the order", words=words)[1]


def test_what_cannot_begin_is_refused(place: Path) -> None:
    for words, told in (([], "Name a TARGET"), (["nothing/here"], "nothing/here"), (["base", "--top-p", "0"], "top-p")):
        done = loraft("chat", *words, cwd=place)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stdout == ""


class Terminal:
    """A chat on a pseudo-terminal of its own: `says` waits for what it prints, `types` writes to it."""

    def __init__(self, place: Path, *words: str) -> None:
        self.shown = ""
        self.child, self._descriptor = pty.fork()
        if self.child == 0:
            os.environ.update(TERM="xterm", COLUMNS="100")
            become(["chat", *words], place, [])

    def says(self, expected: str, timeout: float = 60) -> str:
        """What was printed up to and with `expected`, which is taken off."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(expected, self.shown)):
            if not select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise AssertionError(f"{expected!r} never came: {self.shown!r}")
            try:
                self.shown += os.read(self._descriptor, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended before {expected!r} came: {self.shown!r}") from None
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def types(self, text: str) -> None:
        time.sleep(
            0.3
        )  # Python misses a Ctrl-C between the prompt and the wait for a key, as no finger is quick enough
        os.write(self._descriptor, text.encode())

    def ends(self) -> int:
        """The exit code, once all that is left was read."""
        try:
            while os.read(self._descriptor, 65536):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])

    def close(self) -> None:
        """Ends it, if it has not ended."""
        try:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._descriptor)


@pytest.fixture
def terminal(place: Path) -> Iterator[Terminal]:
    """A chat with a model that goes on for ever, as far as a test can wait."""
    opened = Terminal(place, "endless", "--dtype", "float32", "--max-new-tokens", "100000", "--temperature", "0")
    yield opened
    opened.close()


@pytest.mark.slow
def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends(terminal: Terminal) -> None:
    terminal.says(r"/help lists the commands, Ctrl-D ends")
    terminal.says("> ")
    for _ in range(2):
        terminal.types("the order\r")
        terminal.says("the order\r\n")
        time.sleep(1)
        terminal.types("\x03")
        terminal.says(r"stopped: what was said so far stays, /undo takes it back\.")
        terminal.says("> ")
    terminal.types("/undo\r")
    terminal.says("taken back: the order")
    terminal.says("> ")
    terminal.types("\x04")
    assert terminal.ends() == 0


@pytest.mark.slow
def test_on_a_terminal_a_second_ctrl_c_at_the_prompt_ends(terminal: Terminal) -> None:
    terminal.says("> ")
    terminal.types("half a mess\x03")
    terminal.says("Ctrl-C once more ends")
    terminal.says("> ")
    terminal.types("/system\r")
    terminal.says("there is no system prompt")
    terminal.says("> ")
    terminal.types("\x03")
    terminal.says("Ctrl-C once more ends")
    terminal.types("\x03")
    assert terminal.ends() == 130


@pytest.mark.slow
def test_on_a_terminal_lines_are_edited_and_commands_completed(terminal: Terminal) -> None:
    terminal.says("> ")
    terminal.types("/sysX\x7f\t\r")
    terminal.says("there is no system prompt")
    terminal.types("\x1b[A\r")
    terminal.says("there is no system prompt")
    terminal.types("/quit\r")
    assert terminal.ends() == 0

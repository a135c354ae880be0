"""`loraft serve`, in a process of its own, asked by OpenAI's own client."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.cli.conftest import ANSWER, QUESTIONS, Trained
from tests.cli.running import loraft, refused, started
from tests.serving.serving import half_asked

QUESTION = "What is the capital of France?"


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[tuple[openai.OpenAI, int]]:
    """A client of a server at a free port, and its process."""
    child = started("serve", *words, "--port", "0", cwd=folder)
    log, deadline = folder / ".stderr", time.monotonic() + 60
    try:
        while not (ready := re.search(r"at (http://\S+) ", log.read_text() if log.exists() else "")):
            assert time.monotonic() < deadline, log.read_text()
            assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
            time.sleep(0.02)
        with openai.OpenAI(base_url=ready[1], api_key="any", max_retries=0, timeout=60) as client:
            yield client, child
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def ended(child: int, number: int) -> int:
    """The exit code of a server that was sent a signal."""
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def listens(client: openai.OpenAI) -> bool:
    """Whether a server still takes what is new."""
    try:
        return bool(client.models.list())
    except openai.APIConnectionError:
        return False


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_trained_answers_until_a_signal_ends_it(trained: Trained, place: Path, number: int) -> None:
    with serving(place, "run") as (client, child):
        assert [model.id for model in client.models.list()] == ["default", "base"]
        asked = client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0
        )
        assert asked.choices[0].message.content == ANSWER
        assert ended(child, number) == 0
    assert (place / ".stderr").read_text().endswith("ended.\n")
    assert (place / ".stdout").read_text() == ""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_by_an_error_what_is_still_being_answered(trained: Trained, place: Path) -> None:
    """The likeliest token of the base is never one that ends an answer; one that is drawn may be."""
    with serving(place, "run") as (client, child):
        asked = client.completions.create(model="base", prompt="a", max_tokens=4000, temperature=0, stream=True)
        tokens = iter(asked)
        next(tokens)
        os.kill(child, signal.SIGINT)
        while listens(client):
            pass
        next(tokens)
        os.kill(child, signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server is ending"):
            list(tokens)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    said = (place / ".stderr").read_text()
    assert said.endswith("ended.\n")
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_third_ctrl_c_ends_the_process_at_once(trained: Trained, place: Path) -> None:
    """Half of a request is waited for, which no error ends."""
    with serving(place, "run") as (client, child), half_asked(client.base_url.port or 0):
        for _ in range(2):
            os.kill(child, signal.SIGINT)
            while listens(client):
                pass
            time.sleep(0.5)
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert ended(child, signal.SIGINT) == -signal.SIGINT


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused(loraft("serve", "none-such", "--port", port, cwd=tmp_path))
    assert f"--port: port {port} at 127.0.0.1 cannot be taken: Address already in use" in said


def test_an_address_of_no_machine_is_refused(tmp_path: Path) -> None:
    assert "--host: 192.0.2.1 is no address of this machine" in refused(
        loraft("serve", "none", "--host", "192.0.2.1", cwd=tmp_path)
    )


@pytest.mark.slow
def test_openais_client_gets_from_the_real_model_what_generate_answers(smollm2: Path, tmp_path: Path) -> None:
    """Chat, completions, streams and errors; eight at once; token for token in float32."""
    said = loraft(
        "generate", str(smollm2), "--dtype", "float32", "--temperature", "0", "--max-new-tokens", "24", "-p", QUESTION,
        cwd=tmp_path,
    )  # fmt: skip
    with serving(tmp_path, str(smollm2), "--dtype", "float32") as (client, child):

        def ask(question: str) -> str:
            answer = client.chat.completions.create(
                model="base", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
            )
            return str(answer.choices[0].message.content)

        assert ask(QUESTION) == said.stdout.rstrip("\n")
        others = [f"{QUESTION} And what is {number} and {number}?" for number in range(7)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, [QUESTION, *others]))
        assert together == [ask(question) for question in (QUESTION, *others)]

        streamed = client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24, stream=True
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in streamed) == together[0]
        completed = client.completions.create(
            model="base", prompt="The sky is", max_tokens=4, n=2, temperature=1.0, seed=3, logprobs=2
        )
        assert len(completed.choices) == 2
        assert completed.usage is not None
        assert completed.usage.completion_tokens == 8
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here; there is base"):
            client.completions.create(model="gpt", prompt="a")
        with pytest.raises(openai.BadRequestError, match="this model has learned 8,192 positions"):
            ask("long " * 9000)
        assert ended(child, signal.SIGTERM) == 0

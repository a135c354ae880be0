"""The interface: what it answers, what it refuses, and that nothing a client sends ends it."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from loraft.inference.engine import complete_batch
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import Session, open_session
from loraft.serving.interface import Limits
from loraft.serving.run_server import about_beams
from loraft.serving.voice_batch import VoiceBatch
from tests.inference.voices import adapter_in, base_in
from tests.serving.serving import chat, half_asked, request, served

ASKED = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
LIMITS = Limits(tokens=2000, body_bytes=2000)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("served")
    base = base_in(folder / "base")
    adapter_in(folder / "brief", base, seed=1, system_prompt="Be brief.")
    return open_session(ModelRequest(None, [f"brief={folder / 'brief'}"], dtype="float32"))


@pytest.fixture(scope="module")
def port(session: Session) -> Iterator[int]:
    with served(session, LIMITS) as port:
        yield port


def test_the_models_are_the_adapters_and_the_base(port: int) -> None:
    status, listed = request(port, "/v1/models", method="GET")
    assert (status, [each["id"] for each in listed["data"]]) == (200, ["brief", "base"])
    assert request(port, "/v1/models/brief", method="GET")[1]["id"] == "brief"
    assert request(port, "/v1/models/other", method="GET")[0] == 404
    assert request(port, "/health", method="GET") == (200, {"status": "ok", "answering": 0, "waiting": 0})


def test_beams_that_are_not_followed_are_told(session: Session, tmp_path: Path) -> None:
    assert list(about_beams(session)) == []
    base = base_in(tmp_path / "base")
    defaults = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(defaults | {"num_beams": 4}))
    (told,) = about_beams(open_session(ModelRequest(str(base))))
    assert told.startswith("base: the 4 beams")


def test_a_conversation_goes_on_after_an_answer_that_was_empty(port: int) -> None:
    turns = [*ASKED["messages"], {"role": "assistant", "content": ""}, {"role": "user", "content": "hello?"}]
    status, reply = request(port, "/v1/chat/completions", {**ASKED, "messages": turns})
    assert (status, reply["usage"]["prompt_tokens"] > 30) == (200, True)


def test_a_prompt_that_does_not_fit_is_named_in_the_refusal(port: int) -> None:
    status, reply = chat(port, "word " * 300, max_tokens=4)
    assert status == 400
    assert reply["error"]["message"].startswith("the prompt: has ")


def test_a_request_that_is_cancelled_as_the_server_ends_is_no_traceback(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as longer, served(session, grace=1) as port:
        longer.enter_context(half_asked(port))
    said = capsys.readouterr().err
    assert "Cancel 1 running task" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["brief", "base"])
def test_a_greedy_answer_is_that_of_generate(port: int, session: Session, name: str) -> None:
    """The adapter's with the system prompt that it was trained with."""
    _, reply = request(port, "/v1/chat/completions", {**ASKED, "model": name, "max_tokens": 12})
    voice = session.voice(name).conversing()
    ids = voice.renderer.prompt_ids(voice.conversation("hello"))
    with session.speaking(voice) as model:
        (done,) = complete_batch(model, voice.tokenizer, [ids], **voice.settings(GenerationRequest(max_new_tokens=12)))
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": done.completion, "refusal": None}
    assert choice["finish_reason"] == done.finish_reason
    assert reply["usage"]["completion_tokens"] == len(done.token_ids)
    assert reply["usage"]["prompt_tokens"] == len(ids)


def test_likeliest_tokens_are_told_where_they_are_asked_for(port: int) -> None:
    _, reply = chat(port, "hello", max_tokens=3, logprobs=True, top_logprobs=2)
    told = reply["choices"][0]["logprobs"]["content"]
    assert [len(each["top_logprobs"]) for each in told] == [2, 2, 2]
    assert told[0]["top_logprobs"][0] == {key: told[0][key] for key in ("token", "logprob", "bytes")}
    _, text = request(port, "/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 4, "logprobs": 1})
    (choice,) = text["choices"]
    assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["text_offset"]) == 4
    assert chat(port, "hello", max_tokens=1)[1]["choices"][0]["logprobs"] is None


TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_tools_reach_a_template_that_prints_them(port: int, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    status, reply = chat(port, "hello", max_tokens=1, tools=tools)
    assert (status, reply["error"]["param"]) == (400, "tools")
    assert "the chat template prints no tools" in reply["error"]["message"]
    (base_in(tmp_path / "base") / "chat_template.jinja").write_text(TEMPLATE)
    with served(open_session(ModelRequest(str(tmp_path / "base"), dtype="float32"))) as other:
        read = [chat(other, "hello", max_tokens=1, tools=these)[1]["usage"]["prompt_tokens"] for these in ([], tools)]
        assert read[1] - read[0] > 20
        assert (
            chat(other, "hello", max_tokens=1, tools=tools, tool_choice="none")[1]["usage"]["prompt_tokens"] == read[0]
        )


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "other"}, 404, "there is no model 'other' here; there is brief, base"),
    ({"messages": []}, 400, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "who", "content": "a"}]}, 400, "messages[0].role must be one of"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        400,
        "is the assistant's",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0].content[0] is 'image_url'",
    ),
    ({"temperature": -1}, 400, "temperature: Input should be greater than or equal to 0"),
    ({"temperature": "0"}, 400, "temperature: Input should be a valid number"),
    ({"max_tokens": 2001}, 400, "2,001 is more than the 2,000 tokens that this server gives"),
    ({"stop": [""]}, 400, "stop: must not be empty"),
    ({"stop": 5}, 400, "stop: Input should be a valid array"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not done here but for 0: leave it out"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format.type is not done here but for 'text'"),
    ({"temprature": 0}, 400, "temprature is not known here, or not done"),
    ({"top_logprobs": 2}, 400, "top_logprobs tells more of logprobs"),
    ({"n": 17}, 400, "n: Input should be less than or equal to 16"),
]


@pytest.mark.parametrize(("wrong", "status", "said"), REFUSED)
def test_what_is_not_done_is_refused_with_its_key(port: int, wrong: dict[str, Any], status: int, said: str) -> None:
    got, reply = request(port, "/v1/chat/completions", ASKED | wrong)
    assert got == status
    assert said in reply["error"]["message"]
    assert next(iter(wrong)) in str(reply["error"]["param"])
    assert set(reply["error"]) == {"message", "type", "param", "code"}


def test_bodies_that_are_too_large_or_no_json_are_refused(port: int) -> None:
    path = "/v1/chat/completions"
    assert request(port, path, b'{"a": "' + b"x" * 3000)[0] == 413
    assert request(port, path, b"{}", content_type="text/plain")[0] == 415
    assert request(port, path, b"{")[0] == 400
    assert request(port, "/v1/none", {})[0] == 404
    assert request(port, path, method="GET")[0] == 405


def test_a_server_of_one_machine_is_asked_by_its_own_names_alone(session: Session) -> None:
    """A page in a browser may let a name of its own lead here, and has to call it by that."""
    with served(session, hosts=["localhost", "127.0.0.1", "::1"]) as port:
        for host in ("localhost", "127.0.0.1:80", "[::1]:80"):
            assert request(port, "/v1/models", method="GET", host=host)[0] == 200
        status, reply = request(port, "/v1/models", method="GET", host="evil.example")
        assert status == 421
        assert "evil.example is no name of this server" in reply["error"]["message"]


def test_a_key_has_to_be_brought_where_there_is_one(session: Session) -> None:
    with served(session, api_key="secret") as port:
        assert request(port, "/v1/models", method="GET")[0] == 401
        assert request(port, "/v1/models", method="GET", authorization="Bearer wrong")[0] == 401
        assert request(port, "/v1/chat/completions", ASKED, authorization="Bearer secret")[0] == 200
        assert request(port, "/health", method="GET")[0] == 200


def test_more_requests_than_may_wait_are_told_to_come_later(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer at a time, one that waits: while the first is held up, a third is refused."""
    goes_on, step = threading.Event(), VoiceBatch.step
    monkeypatch.setattr(VoiceBatch, "step", lambda batch: (goes_on.wait(30 * min(1, len(batch))), step(batch))[1])
    with served(session, Limits(rows=1, queue=1)) as port, ThreadPoolExecutor(2) as pool:
        taken = []
        for state in ({"answering": 1, "waiting": 0}, {"answering": 1, "waiting": 1}):
            taken.append(pool.submit(chat, port, "hello", max_tokens=4))
            while request(port, "/health", method="GET")[1] != {"status": "ok", **state}:
                time.sleep(0.01)
        status, reply = chat(port, "hello", max_tokens=4)
        goes_on.set()
        assert (status, reply["error"]["code"]) == (429, "queue_full")
        assert [each.result()[0] for each in taken] == [200, 200]


def test_a_stream_ends_with_its_reason_its_usage_and_done(port: int) -> None:
    _, whole = chat(port, "hello", max_tokens=6, n=2, temperature=0.9, seed=1)
    body = {**ASKED, "max_tokens": 6, "n": 2, "temperature": 0.9, "seed": 1, "stream": True}
    pieces = streamed(port, body | {"stream_options": {"include_usage": True}})
    assert pieces[-1] == "[DONE]"
    *grown, usage = map(json.loads, pieces[:-1])
    texts = {0: "", 1: ""}
    for piece in grown:
        (choice,) = piece["choices"]
        texts[choice["index"]] += choice["delta"]["content"]
    assert [each["message"]["content"] for each in whole["choices"]] == [texts[0], texts[1]]
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert usage["choices"] == []


def streamed(port: int, body: dict[str, Any]) -> list[str]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sent = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]


def test_a_client_that_goes_away_leaves_nothing_running(port: int) -> None:
    sent = json.dumps({**ASKED, "max_tokens": 2000, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(sent)}"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + sent)
        connection.recv(10)
    for _ in range(1000):
        if request(port, "/health", method="GET")[1]["answering"] == 0:
            return
    raise AssertionError("it is still answering")


KEYS = (*ASKED, "tools", "top_p", "seed", "stream", "metadata", "temperature", "stop", "n", "prompt", "k")
VALUES = (
    None, True, -1, 0, 1e308, 10**30, "", "\x00", "a" * 50, [], {}, [None], {"a": []}, [[["x"]]], float("nan")
)  # fmt: skip


def mutated(generator: random.Random) -> bytes:
    """A request with something wrong in it: a value of another kind, a key too many, or bytes that changed."""
    body: dict[str, Any] = ASKED | {"temperature": 0.5, "stop": ["x"], "n": 1}
    body |= {generator.choice(KEYS): generator.choice(VALUES) for _ in range(generator.randint(0, 2))}
    if generator.random() < 0.3:
        turn = {"role": "user", "content": "hello"}
        body["messages"] = [turn | {generator.choice(["role", "content", "tool_calls"]): generator.choice(VALUES)}]
    text = bytearray(json.dumps(body).encode())
    for _ in range(generator.choice([0, 0, 1, 5])):
        text[generator.randrange(len(text))] = generator.randrange(256)
    return bytes(text)


@pytest.mark.slow
def test_a_thousand_malformed_requests_are_answered_one_by_one(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Each by JSON with an error that is the client's, or by an answer; the server says nothing and goes on."""
    generator, seen = random.Random(0), set()
    for path in ("/v1/chat/completions", "/v1/completions"):
        for _ in range(500):
            body = mutated(generator)
            body = body if path.endswith("chat/completions") else body.replace(b"messages", b"prompt")
            status = raw(port, path, body)
            assert status in (200, 400, 404), (status, body)
            seen.add(status)
    assert {200, 400} <= seen
    assert chat(port, "hello", max_tokens=2)[0] == 200
    assert capfd.readouterr() == ("", "")


def raw(port: int, path: str, body: bytes) -> int:
    """The status alone: what is streamed is no JSON."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = (
            f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.endswith((b"}", b"data: [DONE]\n\n"))
    return int(answer.split()[1])

"""What is put on the Hub, by a stand-in of its HTTP interface on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from loraft import api
from loraft.api.to_hub import push
from loraft.errors import ConfigError, InvalidInputError, RunError
from loraft.io.secrets import secret_in
from tests.inference.voices import adapter_in, base_in
from tests.tiny import save_tiny
from tests.training.building import tiny_config

TOKEN = "hf_" + "x" * 30
REPO = "somebody/tickets"


@dataclass
class Hub:
    """The stand-in: repositories by name, what was committed, and what every request said of who it is."""

    repositories: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    refuses: int = 0

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.refuses and "/commit/" in path:
            return self.refuses, {"error": "no room"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            self.repositories[name] = asked
            return 200, {"url": f"{constants.ENDPOINT}/{name}", "name": name}
        if path.endswith("/preupload/main"):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                else:
                    self.commits.append(line["value"]["summary"])
            return 200, {"commitUrl": f"{constants.ENDPOINT}/{REPO}/commit/1", "commitOid": "1", "success": True}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        return 404, {"error": f"no {path}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            made.tokens.add(self.headers.get("authorization"))
            status, answer = made.answer(self.path.partition("?")[0], body)
            said = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter whose base has a name that others could have."""
    monkeypatch.chdir(tmp_path)
    made = adapter_in(tmp_path / "adapter", base_in(tmp_path / "base"))
    config = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "somebody/base"}))
    return made


def test_an_adapter_is_put_there_whole_private_and_without_the_token(hub: Hub, adapter: Path) -> None:
    (adapter / "notes.log").write_text("mine")
    done = push(str(adapter), REPO, message="First")
    assert hub.repositories[REPO]["visibility"] == "private"
    assert hub.commits == ["First"]
    assert hub.files == {each.name: each.read_bytes() for each in adapter.iterdir() if each.name != "notes.log"}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(hub.files)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    assert (done.left, done.address) == (("notes.log",), f"{constants.ENDPOINT}/{REPO}")


def test_a_dry_run_asks_for_nothing_and_needs_no_login(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = push(str(adapter), REPO, dry_run=True)
    assert (hub.tokens, done.address) == (set(), None)
    assert done.files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").stat().st_size


def test_a_run_and_a_model_are_their_folders(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    push("model", REPO, public=True)
    assert hub.repositories[REPO]["visibility"] == "public"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files)


def test_what_must_not_leave_is_refused_before_anything_is_asked(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    (adapter / "README.md").write_text(f"my token is {TOKEN}")
    with pytest.raises(InvalidInputError, match=r"README.md: holds a token of Hugging Face") as refused:
        push(str(adapter), REPO)
    assert TOKEN not in str(refused.value)
    other = adapter_in(tmp_path / "other", tmp_path / "base")
    with pytest.raises(InvalidInputError, match="names its base by a path of this machine"):
        push(str(other), REPO)
    assert hub.tokens == set()


@pytest.mark.parametrize("repo", ["a/b/c", "with space", "-x", ""])
def test_a_name_that_no_repository_can_have_is_refused(hub: Hub, adapter: Path, repo: str) -> None:
    with pytest.raises(ConfigError, match="is no repository's name"):
        push(str(adapter), repo)


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "does not accept the token"), (403, "may not write to"), (507, "the Hub did not take it: no room")],
)
def test_a_hub_that_refuses_is_told_of(hub: Hub, adapter: Path, status: int, said: str) -> None:
    hub.refuses = status
    with pytest.raises(RunError, match=said):
        push(str(adapter), REPO)
    assert hub.files == {}


def test_a_hub_that_does_not_answer_is_told_of(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"the Hub did not take it: .*refused"):
        push(str(adapter), REPO)


def test_nobody_logged_in_is_known_before_the_first_step(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InvalidInputError, match=r"training\.push_to_hub: nobody is logged in to the Hub"):
        api.check(tiny_config(tmp_path, training__push_to_hub=REPO))


@pytest.mark.slow
def test_a_run_that_has_ended_is_put_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one whose push fails says that it is saved, and how to push it."""
    monkeypatch.chdir(tmp_path)
    tiny_config(Path())
    config = tiny_config(Path(), method="full", training__push_to_hub=REPO, training__max_steps=2)
    api.train(config)
    assert "model.safetensors" in hub.files
    hub.refuses = 403
    with pytest.raises(RunError, match="the run is saved, but not pushed") as failed:
        api.train(config, overwrite=True)
    assert failed.value.problems[0].remedy == f"Push it by `loraft.push('run', '{REPO}')`."


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("HF_TOKEN=hf_" + "a" * 34, "a token of Hugging Face"),
        ("sk-proj-" + "a" * 30, "a key of OpenAI or Anthropic"),
        ("AKIA" + "A" * 16, "a key of AWS"),
        ("https://me:pass@host/x", "a password in an address"),
        ("half_a_word hf_short https://host/a@b:c", None),
    ],
)
def test_secrets_are_known_by_their_shapes(text: str, kind: str | None) -> None:
    assert secret_in(text) == kind

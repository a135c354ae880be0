"""Rows at an address: fetched once, the same rows as the plain file, and fetched again after a change."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from loraft.config.sections import DataSource
from loraft.errors import DataError
from loraft.io import kept_files
from loraft.rows import remote
from loraft.rows.raw_rows import content_of, count_rows, read_rows, rows_to_answer
from tests.rows.files import PAIRS, written

pytestmark = pytest.mark.usefixtures("cache")


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, and which of them were asked for."""

    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        self.asked.append(f"{self.command} {self.path}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder that is served, its address, and what was asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []
    handler = type("Handler", (Quiet,), {"asked": asked})
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    _forget()
    yield folder, f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    thread.join()
    http.server_close()


def _forget() -> None:
    """As another process would: what one has fetched stays what it was."""
    remote.fetched.cache_clear()
    remote.listed.cache_clear()


def test_a_file_of_a_server_is_fetched_once_until_it_changes(server: tuple[Path, str, list[str]]) -> None:
    folder, address, asked = server
    path = written(folder, ".jsonl", packed=".gz")
    source = DataSource(path=f"{address}/rows.jsonl.gz?token=1")
    rows = read_rows(source).rows
    assert [row.values for row in rows] == PAIRS
    assert rows[0].where == f"{source.path}:1"
    assert count_rows(source) == len(PAIRS)
    assert content_of(source) == content_of(DataSource(path=str(path)))
    _forget()
    read_rows(source)
    assert [each for each in asked if each.startswith("GET")] == ["GET /rows.jsonl.gz?token=1"]
    written(folder, ".jsonl", PAIRS[:2], packed=".gz")
    assert len(read_rows(source).rows) == len(PAIRS), "a process reads the same rows from its beginning to its end"
    os.utime(path, (1, 1))
    _forget()
    assert len(read_rows(source).rows) == 2


def test_what_cannot_be_reached_is_one_sentence(server: tuple[Path, str, list[str]]) -> None:
    _, address, _ = server
    for name, said in (
        (f"{address}/no.jsonl", "there is no such file"),
        ("http://127.0.0.1:1/a.jsonl", "cannot be reached"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            read_rows(DataSource(path=name))
        (problem,) = caught.value.problems
        assert problem.where == name
        assert problem.remedy
        assert "\n" not in problem.message


def test_a_repository_that_is_not_there_is_no_file() -> None:
    """The Hub's client has the status in its answer, and says more in words that nobody needs."""
    missing = type("NotFound", (Exception,), {"response": SimpleNamespace(status_code=404)})
    with pytest.raises(DataError, match="there is no such file"), remote._told_where_unreachable("hf://datasets/a/b/c"):
        raise missing("404 Client Error. (Request ID: x)")


def test_a_short_answer_is_no_file(server: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address, _ = server
    (folder / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    whole = Quiet.send_header

    def longer(self: Quiet, name: str, value: str) -> None:
        whole(self, name, "999" if name == "Content-Length" else value)

    monkeypatch.setattr(Quiet, "send_header", longer)
    with pytest.raises(DataError, match="cannot be reached"):
        read_rows(DataSource(path=f"{address}/a.jsonl"))


def test_a_cache_that_cannot_be_written_is_told(
    server: tuple[Path, str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, _ = server
    written(folder, ".jsonl")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be kept in the cache"):
        read_rows(DataSource(path=f"{address}/rows.jsonl"))


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    _forget()
    yield system
    system.rm("/", recursive=True)


def test_folders_and_patterns_elsewhere(memory: fsspec.AbstractFileSystem) -> None:
    line = json.dumps({"text": "x"}).encode() + b"\n"
    memory.pipe({"/d/b.jsonl": line, "/d/a.jsonl.gz": gzip.compress(line * 2), "/d/.c.jsonl": line, "/d/x.png": b""})
    for name in ("memory://d", "memory://d/*.jsonl*"):
        found = read_rows(DataSource(path=name))
        assert [row.where for row in found.rows] == [
            "memory:///d/a.jsonl.gz:1",
            "memory:///d/a.jsonl.gz:2",
            "memory:///d/b.jsonl:1",
            *["memory:///d/.c.jsonl:1"] * 0,
        ]
    assert len(rows_to_answer(Path("memory://d/b.jsonl"), "texts").rows) == 1, "a Path keeps one slash"


def test_fetched_files_that_nobody_used_go(memory: fsspec.AbstractFileSystem, cache: Path) -> None:
    memory.pipe({"/a.jsonl": b'{"text": "x"}\n', "/b.jsonl": b'{"text": "x"}\n'})
    read_rows(DataSource(path="memory://a.jsonl"))
    (old,) = (cache / kept_files.KEPT).iterdir()
    os.utime(old, (0, 0))
    read_rows(DataSource(path="memory://b.jsonl"))
    assert not old.exists()
    assert len(list((cache / kept_files.KEPT).iterdir())) == 1


def test_a_file_url_of_this_machine_is_read_where_it_lies(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, ".jsonl")
    for name in (f"file://{path}", f"file:{path}"):
        assert read_rows(DataSource(path=name)).rows[0].where == f"{path}:1"
    assert not cache.exists()

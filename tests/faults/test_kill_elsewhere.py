"""What is killed while it writes anything else: what was there before stands, and the same command ends as if never."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.api.test_to_hub import REPO, Hub, hub
from tests.cli.running import loraft, started
from tests.faults.cells import exit_code
from tests.faults.conftest import Trial
from tests.faults.fault_points import before_each_change, signalled_at
from tests.inference.voices import adapter_in, base_in
from tests.models.gguf_files import write_tiny_gguf
from tests.training.building import rows, write_rows

__all__ = ["hub"]  # a fixture


@dataclass(frozen=True)
class Work:
    """A command that writes.

    Attributes:
        words: The command.
        beneath: The folder in which it changes files.
        out: What it makes there; None is all.
        before: What is there before it, made by this command.
    """

    words: tuple[str, ...]
    beneath: str
    out: str | None = None
    before: tuple[str, ...] | None = None


WORKS = {
    "merging": Work(
        ("merge", "a", "made/merged", "--overwrite"), "made", "merged", ("merge", "b", "made/merged", "--no-verify")
    ),
    "exporting": Work(("export", "a", "made/m.gguf", "--overwrite"), "made", "m.gguf", ("export", "b", "made/m.gguf")),
    "converting into the cache": Work(("inspect-layers", "base.gguf"), "cache"),
    "tokenising into the cache": Work(("check", "c.yaml"), "cache"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in a folder and as a file, two adapters, and a config."""
    folder = tmp_path_factory.mktemp("place")
    base = base_in(folder / "base")
    adapter_in(folder / "a", base)
    adapter_in(folder / "b", base, seed=4)
    write_tiny_gguf(folder / "base.gguf")
    write_rows(folder / "rows.jsonl", rows())
    (folder / "c.yaml").write_text(
        "model: {name_or_path: base, dtype: float32}\nlora: {r: 4}\ndata: {train: rows.jsonl, eval: 0.2}\n"
        "training: {max_steps: 2, output_dir: run}\n"
    )
    return folder


@pytest.fixture
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache beside what the commands read."""
    monkeypatch.setenv("LORAFT_CACHE", str(place / "cache"))
    yield
    for name in ("made", "cache", "run"):
        shutil.rmtree(place / name, ignore_errors=True)


def contents(place: Path, folder: str, out: str | None = None) -> dict[str, bytes]:
    """The files of a folder, or of one thing in it, by their names, but for locks."""
    top = place / folder / (out or "")
    files = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix != ".lock" and path.name != ".lock"]
    return {path.relative_to(top.parent).as_posix(): _without_clock(path) for path in kept}


def _without_clock(path: Path) -> bytes:
    lines = path.read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if b'"merge_seconds"' not in line)


def changes(place: Path, work: Work) -> int:
    """How many changes of files the command makes."""
    seen, told = os.pipe()
    first: Callable[[], None] = lambda: before_each_change(place / work.beneath, lambda *_: os.write(told, b"."))  # noqa: E731
    pid = started(*work.words, cwd=place, first=first)
    os.close(told)
    with open(seen, "rb") as counted:
        count = len(counted.read())
    assert exit_code(pid) == 0, (place / ".stderr").read_text()
    return count


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", WORKS)
def test_what_is_killed_while_it_writes_leaves_what_was_there(
    place: Path, name: str, trial: Trial, torture: bool
) -> None:
    work = WORKS[name]
    begins = place / "begins"
    shutil.rmtree(begins, ignore_errors=True)
    (place / work.beneath).mkdir()
    if work.before is not None:
        done = loraft(*work.before, cwd=place)
        assert done.returncode == 0, done.stderr
    shutil.copytree(place / work.beneath, begins)
    old = contents(place, work.beneath, work.out)
    count = changes(place, work)
    new = contents(place, work.beneath, work.out)
    points = range(1, count + 1) if torture else sorted(random.Random(name).sample(range(1, count + 1), 4))
    for point in points:
        shutil.rmtree(place / work.beneath)
        shutil.copytree(begins, place / work.beneath)
        with trial(f"kill -9 while {name}: what was there stands, the same command ends as if never killed"):
            first = signalled_at(place / work.beneath, point)
            assert exit_code(started(*work.words, cwd=place, first=first)) == -signal.SIGKILL
            if work.out is not None:
                left = contents(place, work.beneath, work.out)
                if not left:  # between the two renames of a folder: the old one is put back by the next command
                    beside = contents(place, work.beneath, f".{work.out}.previous")
                    left = {name.replace(f".{work.out}.previous", work.out): held for name, held in beside.items()}
                assert left in (old, new)
            done = loraft(*work.words, cwd=place)
            assert done.returncode == 0, done.stderr
            assert contents(place, work.beneath, work.out) == new
            assert not list((place / work.beneath).rglob(".*.p*")), "nothing is left over"


@pytest.mark.slow
@pytest.mark.parametrize("request_number", [1, 2, 3])
def test_what_is_killed_while_it_is_pushed_is_there_whole_or_not_at_all(
    place: Path, hub: Hub, request_number: int, trial: Trial
) -> None:
    """Killed when the repository is made, when the files are announced, and when they are sent."""
    answer, asked, pushing = hub.answer, [0], [0]

    def killing(path: str, body: bytes) -> tuple[int, dict[str, object]]:
        asked[0] += 1
        if asked[0] == request_number:
            os.kill(pushing[0], signal.SIGKILL)
        return answer(path, body)

    hub.answer = killing  # type: ignore[method-assign]
    shutil.copytree(place / "a", place / "pushed", dirs_exist_ok=True)
    named = json.loads((place / "a/adapter_config.json").read_text()) | {"base_model_name_or_path": "some/model"}
    (place / "pushed/adapter_config.json").write_text(json.dumps(named))
    with trial("kill -9 while pushing: all of it is on the Hub or nothing, the next push ends"):
        pushing[0] = started("push", "pushed", REPO, cwd=place)
        assert exit_code(pushing[0]) == -signal.SIGKILL
        whole = {path.name: path.read_bytes() for path in (place / "pushed").iterdir()}
        assert hub.files in (whole, {})
        assert exit_code(started("push", "pushed", REPO, cwd=place)) == 0, (place / ".stderr").read_text()
        assert hub.files == whole


@pytest.mark.slow
def test_answers_that_are_killed_while_they_are_written_lose_and_repeat_no_row(
    place: Path, tmp_path: Path, trial: Trial
) -> None:
    """Killed or stopped at random moments: the same bytes as of a run that was never stopped."""
    asked = [{"id": number, "prompt": f"the order {number}"} for number in range(200)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    words = ["generate", str(place / "a"), "--dtype", "float32", "--max-new-tokens", "6", "--batch-size", "2"]
    words += ["--temperature", "1", "--input", "p.jsonl", "--output"]
    assert loraft(*words, "whole.jsonl", cwd=tmp_path).returncode == 0
    draw, output = random.Random(0), tmp_path / "o.jsonl"
    for number in [signal.SIGKILL, signal.SIGINT] * 5:
        with trial("kill -9 or SIGINT while answers are written: no row lost, none twice"):
            size = output.stat().st_size if output.exists() else 0
            pid = started(*words, "o.jsonl", cwd=tmp_path)
            while (output.stat().st_size if output.exists() else 0) <= size:
                time.sleep(0.001)
            time.sleep(draw.random() * 0.03)
            os.kill(pid, number)
            assert exit_code(pid) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
            whole = (tmp_path / "whole.jsonl").read_bytes()
            assert whole.startswith(output.read_bytes())
            assert output.stat().st_size < len(whole)
    assert loraft(*words, "o.jsonl", cwd=tmp_path).returncode == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()

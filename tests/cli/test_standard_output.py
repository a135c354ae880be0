"""Standard output that cannot be written, or that nobody reads: of every command, of help and of the version."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loraft.__main__ import main
from loraft.training.run_dir import RunFolder
from tests.cli.conftest import Loraft, WriteConfig
from tests.cli.test_app import COMMANDS, ROOT
from tests.tiny import save_tiny
from tests.training.building import labelled, rows, write_rows

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
ToFull = Callable[..., tuple[int, str]]


@pytest.fixture
def to_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ToFull:
    """Runs `loraft` in this process with standard output on a full disk: its exit code and its standard error."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        with FULL.open("wb") as full, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
            patched.setattr(sys, "argv", ["loraft", *words])
            with pytest.raises(SystemExit) as ended:
                main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def is_told(ended: tuple[int, str]) -> None:
    code, said = ended
    assert code == 3, said
    problems = [line for line in said.splitlines() if line.startswith("error: ")]
    assert problems == ["error: standard output: cannot be written: No space left on device"]
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_on_a_full_disk(to_full: ToFull, words: list[str]) -> None:
    is_told(to_full(*words))


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(
    "words",
    [
        ["schema"],
        ["init", "new.yaml"],
        ["init", "new.yaml", "--json"],
        ["check", "tickets.yaml"],
        ["check", "tickets.yaml", "--json"],
        ["generate", "run", "-p", "Hi"],
        ["generate", "run", "-p", "Hi", "--json"],
        ["merge", "run"],
        ["merge", "run", "--json"],
        ["train", "tickets.yaml"],
        ["train", "tickets.yaml", "--json"],
        ["generate", "run", "-p", "Hi", "-p", "Ho"],
        ["generate", "run", "-p", "Hi", "--compare"],
    ],
)
def test_results_on_a_full_disk(config: WriteConfig, to_full: ToFull, words: list[str]) -> None:
    config()
    is_told(to_full(*words))


@pytest.mark.slow
def test_every_command_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_full: ToFull) -> None:
    monkeypatch.chdir(tmp_path)
    for name, task, model, given in (("c", "causal_lm", "llama", rows()), ("k", "seq_cls", "bert", labelled())):
        save_tiny(Path(f"{name}-base"), model)
        write_rows(Path(f"{name}.jsonl"), given)
        Path(f"{name}.yaml").write_text(
            f"task: {task}\nmodel: {{name_or_path: {name}-base, dtype: float32}}\n"
            f"data: {{train: {name}.jsonl, eval: 0.4}}\ntraining: {{output_dir: {name}-run, max_steps: 1}}\n"
        )
        is_told(to_full("train", f"{name}.yaml"))
    limit = ("--max-new-tokens", "4")
    commands = [
        ["check", "c.yaml", "training.output_dir=other"],
        ["preview", "c.yaml"],
        ["evaluate", "c-run"],
        ["merge", "c-run", "--overwrite"],
        ["generate", "c-run", "-p", "the order", "--trace", *limit],
        ["predict", "k-run", "--text", "the order"],
        ["inspect-layers", "c-run"],
        ["doctor"],
    ]
    for command in commands:
        is_told(to_full(*command))
        is_told(to_full(*command, "--json"))


@pytest.mark.slow
def test_a_process_of_its_own_says_it_once_and_ends_with_3() -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "loraft", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        3,
        "error: standard output: cannot be written: No space left on device\n",
    )


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("words", [["schema"], ["--help"], ["--version"], ["train", "--help"]])
def test_a_reader_who_has_gone_is_no_error(words: list[str]) -> None:
    left = f"{sys.executable} -m loraft {' '.join(words)} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", left], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_standard_output_is_refused_before_anything_is_done() -> None:
    words = ["bash", "-c", f"{sys.executable} -m loraft schema >&-"]
    done = subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 2
    assert "standard output is closed" in done.stderr


@pytest.mark.slow
def test_where_standard_error_is_closed_the_exit_code_and_the_document_tell(tmp_path: Path) -> None:
    words = ["bash", "-c", f"{sys.executable} -m loraft check not-there.yaml --json 2>&-"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (2, 2)


@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_a_config_on_a_disk_that_takes_none_is_refused(folder: str, loraft: Loraft) -> None:
    result = loraft("init", f"{folder}/x.yaml", "--json")
    assert result.exit_code == 2
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem["where"] == f"{folder}/x.yaml"
    assert problem["message"].startswith("cannot be written: ")


def test_a_disk_that_refuses_anywhere_is_no_bug(
    loraft: Loraft, config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "runs/x/metrics.jsonl")

    monkeypatch.setattr(RunFolder, "append", refused)
    result = loraft("train", str(config()))
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == "error: runs/x/metrics.jsonl: Read-only file system"

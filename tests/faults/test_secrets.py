"""Tokens, names and places of this machine: none is in a file that is written, and none in a card or a manifest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import loraft, refused
from tests.faults.conftest import Trial
from tests.tiny import save_tiny
from tests.training.building import ROWS_OF, write_rows

SECRET = "a token of the environment or of a config: in no byte of a file or a message"
TELLS = "a card, a manifest, a record: no absolute path, no name of a user or a machine"
MODES = "a file that is written: its mode is the umask's; the cache is its user's alone"
CANARIES = {
    "HF_TOKEN": "hf_" + "CanaryOfTheHub" * 3,
    "WANDB_API_KEY": "0ca9a41e" * 5,
    "OPENAI_API_KEY": "sk-canary-" + "a1b2" * 8,
    "AWS_SECRET_ACCESS_KEY": "CanaryOfTheCloud/0123456789abcdef",
    "MY_PASSWORD": "canary-without-a-shape",
}
WHO = {"USER": "canaryuser", "LOGNAME": "canaryuser", "USERNAME": "canaryuser", "HOSTNAME": "canaryhost"}
TOLD = ("README.md", "manifest.json", "loraft.json", "merge_report.json", "adapter_config.json", "Modelfile")
"""The files that are handed on, or tell of a run."""
COMMANDS = (
    ("check", "c.yaml"),
    ("train", "c.yaml"),
    ("train", "c.yaml", "training.max_steps=3", "--resume-anyway"),
    ("evaluate", "run", "--data", "rows.jsonl"),
    ("merge", "run", "merged"),
    ("export", "run", "out/model.gguf", "--ollama"),
    ("report", "run"),
    ("push", "merged", "somebody/tickets", "--dry-run"),
    ("push", "run", "somebody/tickets", "--dry-run"),  # its base is a path of this machine
)


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """An environment with tokens, a user and a machine of names like no others, and a cache of its own."""
    for name, value in (CANARIES | WHO).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("socket.gethostname", lambda: WHO["HOSTNAME"])
    monkeypatch.setattr("platform.node", lambda: WHO["HOSTNAME"])
    monkeypatch.setattr("getpass.getuser", lambda: WHO["USER"])
    return cache


def prepared(folder: Path, *, absolute: bool) -> None:
    """A tiny model, rows and a config, which names them as `absolute` says and has a token in a remark."""
    save_tiny(folder / "model", max_position_embeddings=512)
    write_rows(folder / "rows.jsonl", ROWS_OF["causal_lm"]())
    (folder / "out").mkdir()
    at = f"{folder}/" if absolute else ""
    (folder / "c.yaml").write_text(
        f"# token: {CANARIES['HF_TOKEN']}, for WANDB_API_KEY={CANARIES['WANDB_API_KEY']}\n"
        f"model: {{name_or_path: {at}model, dtype: float32}}\nlora: {{r: 2}}\n"
        f"data: {{train: {at}rows.jsonl, eval: 0.3, max_length: 256}}\n"
        f"training: {{output_dir: {at}run, max_steps: 2, logging_steps: 1, save_steps: 1, sample_prompts: [hello]}}\n"
        "generation: {max_new_tokens: 4}\n"
    )


def files_below(*folders: Path) -> Iterator[Path]:
    """Every file that the commands wrote."""
    for folder in folders:
        yield from (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_c44_canaries_reach_no_file_and_no_message(
    absolute: bool, canaries: Path, trial: Trial, tmp_path: Path
) -> None:
    """C44: all bytes are looked at, of the cache too; the config itself is the user's own."""
    prepared(tmp_path, absolute=absolute)
    before = os.umask(0o027)
    try:
        for words in COMMANDS:
            with trial(SECRET):
                done = loraft(*words, cwd=tmp_path)
                assert done.returncode == (2 if words[:2] == ("push", "run") else 0), (words, done.stderr)
                assert not [name for name, value in CANARIES.items() if value in done.stdout + done.stderr], words
    finally:
        os.umask(before)
    written = [file for file in files_below(tmp_path, canaries) if file != tmp_path / "c.yaml"]
    assert len(written) > 40
    with trial(SECRET):
        for file in written:
            raw = file.read_bytes()
            assert not [name for name, value in CANARIES.items() if value.encode() in raw], file
            assert not [value for value in WHO.values() if value.encode() in raw], file
    told = [file for file in written if file.name in TOLD and "model" not in file.relative_to(tmp_path).parts[:1]]
    assert {file.name for file in told} >= {"README.md", "manifest.json", "loraft.json", "merge_report.json"}
    for file in told:
        with trial(TELLS):
            text = file.read_text()
            if file.name != "adapter_config.json" or not absolute:  # there the base is named as the config names it
                assert str(tmp_path) not in text, file
    fresh = [file for file in written if not file.is_relative_to(tmp_path / "model") and file.name != "rows.jsonl"]
    with trial(MODES):
        modes = {file: stat.S_IMODE(file.stat().st_mode) for file in fresh}
        assert {file: oct(mode) for file, mode in modes.items() if mode & 0o137} == {}
        assert stat.S_IMODE(canaries.stat().st_mode) == 0o700


@pytest.mark.slow
@pytest.mark.parametrize("name", CANARIES)
def test_c44_a_config_with_a_token_is_refused_before_anything_is_written(
    name: str, canaries: Path, trial: Trial, tmp_path: Path
) -> None:
    prepared(tmp_path, absolute=False)
    there = sorted(tmp_path.rglob("*"))
    for key in ("training.run_name", "training.output_dir", "data.train", "training.max_steps", "hub_token"):
        with trial(SECRET):
            for as_json in ((), ("--json",)):
                done = loraft("check", "c.yaml", f"{key}={CANARIES[name]}", *as_json, cwd=tmp_path)
                assert done.returncode == 2
                assert CANARIES[name] not in done.stdout + done.stderr
    with trial(SECRET):
        assert "error" in refused(loraft("train", "c.yaml", f"training.run_name={CANARIES[name]}", cwd=tmp_path))
        assert sorted(tmp_path.rglob("*")) == there

"""A pickle in the place of every file that is read: it never runs, and what cannot be read is told."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.running import loraft
from tests.converting.planted import Planted, planted
from tests.faults.conftest import Trial
from tests.tiny import save_tiny
from tests.training.building import ROWS_OF, write_rows

PROMISE = "a planted pickle in a file that is read: it never runs, and there is no traceback"
OF_A_MODEL = (
    *("model.safetensors", "pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json", "config.json"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    *("chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.pkl"),
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "tokenizer.model", "spiece.model"),
    *("weights.npy", "weights.npz", "loraft.json", "tokenizer.pkl", "processor.pkl", "modeling.py"),
)
OF_AN_ADAPTER = (
    *("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json", "loraft.json", "tokenizer.json"),
    *("tokenizer_config.json", "generation_config.json", "chat_template.jinja", "README.md", "optimizer.pt"),
    *("training_args.bin", "scheduler.pt", "rng_state.pth", "adapter_model.pt"),
)
OF_ROWS = (
    *("rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.txt", "rows.md", "rows.parquet", "rows.xlsx"),
    *("rows.jsonl.gz", "rows.jsonl.bz2", "rows.jsonl.zst", "rows.npy", "rows.npz", "rows.pkl", "rows.arrow", "rows.pt"),
)
OF_COMMANDS = ("c.yaml", "model.gguf", "chat.jinja", "prompts.jsonl", "answers.jsonl", "foreign.yaml")


def archived(ran: Path) -> bytes:
    """As torch.save writes a pickle."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2), "b": Planted(ran)}, stream)
    return stream.getvalue()


def of_numpy(ran: Path) -> bytes:
    """As numpy writes an array of objects: an archive of a header and a pickle."""
    stream = io.BytesIO()
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(127) + b"\n"
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", head + planted(ran))
    return stream.getvalue()


FORMS: tuple[Callable[[Path], bytes], ...] = (planted, archived, of_numpy)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, a config and a run that has two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny(folder / "model", num_hidden_layers=1)
    write_rows(folder / "rows.jsonl", ROWS_OF["causal_lm"]())
    (folder / "c.yaml").write_text(
        "model: {name_or_path: model, dtype: float32}\nlora: {r: 2}\n"
        "data: {train: rows.jsonl, eval: null, max_length: 256}\n"
        "training: {output_dir: run, max_steps: 2, save_steps: 1, logging_steps: 1, per_device_train_batch_size: 2}\n"
    )
    done = loraft("train", "c.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def tried(trial: Trial, folder: Path, file: Path, form: Callable[[Path], bytes], *words: str) -> None:
    """Put the pickle there, run the command, and look whether it ran."""
    ran = folder.parent / "ran"
    with trial(PROMISE):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(form(ran))
        done = loraft(*words, cwd=folder)
        assert not ran.exists(), file
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 2, 3), done.stderr


def chosen(torture: bool, number: int) -> tuple[Callable[[Path], bytes], ...]:
    """Every form, or one of them in turn."""
    return FORMS if torture else (FORMS[number % len(FORMS)],)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_A_MODEL)
def test_c41_in_the_folder_of_a_model(name: str, run: Path, trial: Trial, torture: bool, tmp_path: Path) -> None:
    for form in chosen(torture, OF_A_MODEL.index(name)):
        shutil.copytree(run / "model", tmp_path / "here" / "model")
        asked = ("generate", "model", "-p", "x", "--max-new-tokens", "1")
        tried(trial, tmp_path / "here", tmp_path / "here/model" / name, form, *asked)
        if name.startswith("pytorch_model"):  # where there is nothing else
            (tmp_path / "here/model/model.safetensors").unlink()
            tried(trial, tmp_path / "here", tmp_path / "here/model" / name, form, *asked)
        shutil.rmtree(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_AN_ADAPTER)
def test_c41_in_the_folder_of_an_adapter(name: str, run: Path, trial: Trial, torture: bool, tmp_path: Path) -> None:
    for form in chosen(torture, OF_AN_ADAPTER.index(name)):
        here = shutil.copytree(run, tmp_path / "here")
        asked = ("generate", "run/adapter", "-p", "x", "--max-new-tokens", "1")
        tried(trial, here, here / "run/adapter" / name, form, *asked)
        shutil.rmtree(here)


@pytest.mark.slow
def test_c41_in_every_file_of_a_run(run: Path, trial: Trial, torture: bool, tmp_path: Path) -> None:
    """Of the checkpoints too; a run that has been killed reads them all."""
    there = sorted(file.relative_to(run) for file in (run / "run").rglob("*") if file.is_file())
    there += [Path("run/checkpoints/step-000002") / name for name in ("optimizer.pt", "rng_state.pth", "scheduler.bin")]
    for number, name in enumerate(there if torture else there[:: max(1, len(there) // 12)]):
        for form in chosen(torture, number):
            here = shutil.copytree(run, tmp_path / "here")
            tried(
                trial, here, here / name, form, "train", "c.yaml", "--resume", "training.max_steps=3", "--resume-anyway"
            )
            shutil.rmtree(here)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ROWS)
def test_c41_in_a_file_of_rows(name: str, run: Path, trial: Trial, torture: bool, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "here" / "model")
    shutil.copy(run / "c.yaml", tmp_path / "here" / "c.yaml")
    for form in chosen(torture, OF_ROWS.index(name)):
        asked = ("preview", "c.yaml", f"data.train={name}")
        tried(trial, tmp_path / "here", tmp_path / "here" / name, form, *asked)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_COMMANDS)
def test_c41_in_what_a_command_is_given(name: str, run: Path, trial: Trial, torture: bool, tmp_path: Path) -> None:
    asked = {
        "c.yaml": ("check", "c.yaml"),
        "model.gguf": ("inspect-layers", "model.gguf"),
        "chat.jinja": ("preview", "c.yaml", "data.chat_template=chat.jinja"),
        "prompts.jsonl": ("generate", "model", "--input", "prompts.jsonl", "--output", "answers.jsonl"),
        "answers.jsonl": ("generate", "model", "--input", "rows.jsonl", "--output", "answers.jsonl"),
        "foreign.yaml": ("import", "foreign.yaml"),
    }[name]
    for form in chosen(torture, OF_COMMANDS.index(name)):
        here = shutil.copytree(run, tmp_path / "here")
        tried(trial, here, here / name, form, *asked)
        shutil.rmtree(here)


@pytest.mark.slow
def test_c41_in_every_file_of_the_cache(run: Path, trial: Trial, torture: bool, tmp_path: Path, cache: Path) -> None:
    """Tokens of an earlier start, and rows that were piped in."""
    here = shutil.copytree(run, tmp_path / "here")
    assert loraft("check", "c.yaml", cwd=here).returncode == 0
    kept = sorted(file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock")
    assert {file.name for file in kept} >= {"rows.safetensors", "facts.json", "manifest.json"}
    for number, file in enumerate(kept):
        for form in chosen(torture, number):
            whole = file.read_bytes()
            tried(trial, here, file, form, "check", "c.yaml")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(whole)


def test_each_of_them_would_run(tmp_path: Path) -> None:
    """Where it is opened as pickles are: else the tests above would show nothing."""
    import numpy as np

    for number, opens in enumerate(
        (lambda file: pickle.loads(file.read_bytes()),
         lambda file: torch.load(file, weights_only=False),
         lambda file: np.load(file, allow_pickle=True)["a"])
    ):  # fmt: skip
        file, ran = tmp_path / f"{number}.bin", tmp_path / f"ran-{number}"
        file.write_bytes(FORMS[number](ran))
        with contextlib.suppress(Exception):  # what is no array is told after it ran
            opens(file)
        assert ran.exists(), number

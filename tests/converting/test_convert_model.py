"""`loraft.convert` from end to end, with the work of its process done in this one; and once as it is, slowly."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from loraft.config.sections import ModelSection
from loraft.converting import convert_model
from loraft.converting.convert_model import convert
from loraft.converting.unpickled_file import rewrite
from loraft.errors import ModelError, RunFolderError, VerificationError
from loraft.models.safetensors_index import read_headers
from loraft.models.sources import ModelHandle, resolve
from tests.cli.running import loraft, refused
from tests.converting.planted import pickled_copy, planted, save_pickled
from tests.tiny import save_tiny


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of the process is done in this one."""
    monkeypatch.setattr(convert_model, "rewritten", rewrite)


@pytest.mark.slow_after(1)
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("model_type", ["marian", "t5", "gpt2"])
def test_a_pickled_model_becomes_one_that_loads_with_the_same_numbers(model_type: str, tmp_path: Path) -> None:
    expected = save_pickled(tmp_path / "model", model_type)
    report = convert(str(tmp_path / "model"), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert report.tensors == len(expected)
    assert report.files.keys() == {file.name for file in (tmp_path / "out").iterdir()}
    assert resolve(str(tmp_path / "out")) == tmp_path / "out"
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "model/tokenizer.json").read_bytes()


@pytest.mark.usefixtures("here")
def test_what_transformers_ties_is_left_to_it_and_comes_back(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "whole", "marian")
    whole = AutoModelForSeq2SeqLM.from_pretrained(source)
    pickled = pickled_copy(source, tmp_path / "model")
    torch.save(whole.state_dict(), pickled / "pytorch_model.bin")  # with the names of what is tied, in one memory
    report = convert(str(pickled), tmp_path / "out")
    assert set(report.tied) == set(whole.all_tied_weights_keys)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.usefixtures("here")
def test_shards_stay_shards(tmp_path: Path) -> None:
    tensors = save_pickled(tmp_path / "model")
    (whole := tmp_path / "model/pytorch_model.bin").unlink()
    names = sorted(tensors)
    shards = {name: f"pytorch_model-{1 + (place > 9)}-of-2.bin" for place, name in enumerate(names)}
    for shard in sorted(set(shards.values())):
        torch.save({name: tensors[name] for name in names if shards[name] == shard}, tmp_path / "model" / shard)
    index = whole.with_name("pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": shards}))
    stale = index.with_name("model.safetensors.index.json")  # of files that are there no longer
    stale.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00009.safetensors")}))
    convert(str(tmp_path / "model"), tmp_path / "out")
    found = read_headers(tmp_path / "out")
    assert found.keys() == tensors.keys()
    assert len({header.file for header in found.values()}) == 2
    assert not (tmp_path / "out" / index.name).exists()
    index.write_text(json.dumps({"weight_map": {**shards, "absent": shards[names[0]]}}))
    with pytest.raises(ModelError, match="no file holds absent, which the index lists"):
        convert(str(tmp_path / "model"), tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.usefixtures("here")
def test_a_place_that_is_taken_is_left_as_it_is(tmp_path: Path) -> None:
    save_pickled(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for out in ("out", "dangling"):
        with pytest.raises(RunFolderError, match="is there already"):
            convert(str(tmp_path / "model"), tmp_path / out)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("here")
def test_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path) -> None:
    save_pickled(tmp_path / "model")
    (tmp_path / "model/pytorch_model.bin").write_bytes(planted(tmp_path / "ran"))
    with pytest.raises(ModelError):
        convert(str(tmp_path / "model"), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_what_was_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damages(source: Path, out: Path, ties: Any, progress: Any) -> Any:
        done = rewrite(source, out, ties, progress)
        with out.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x42")
        return done

    monkeypatch.setattr(convert_model, "rewritten", damages)
    save_pickled(tmp_path / "model")
    with pytest.raises(VerificationError, match="was written otherwise than it was read"):
        convert(str(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_code_and_state_stay_behind_and_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    save_pickled(tmp_path / "model")
    for name in ("modeling_x.py", "optimizer.pt", "tf_model.h5", "README.md"):
        (tmp_path / "model" / name).write_bytes(b"x")
    report = convert(str(tmp_path / "model"), tmp_path / "out")
    assert report.left == ("modeling_x.py", "optimizer.pt", "tf_model.h5")
    assert (tmp_path / "out/README.md").is_file()
    (tmp_path / "plain").touch()
    plain = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()} == {plain}


@pytest.mark.usefixtures("here")
def test_the_refusal_of_pickles_names_what_makes_safetensors_of_them(tmp_path: Path) -> None:
    save_pickled(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        _ = ModelHandle(ModelSection(name_or_path=str(tmp_path / "model"))).folder
    assert f"`loraft.convert({str(tmp_path / 'model')!r}, 'OUT')`" in str(caught.value)
    typed = refused(loraft("generate", "model", "-p", "x", cwd=tmp_path))
    assert "loraft convert model OUT" in typed


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a translator whose weights are pickled."""
    folder = tmp_path_factory.mktemp("translator")
    save_pickled(folder / "model", "marian")
    return folder


@pytest.mark.slow
def test_a_process_of_its_own_converts_through_the_command_line(translator: Path, tmp_path: Path) -> None:
    done = loraft("convert", str(translator / "model"), "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == len(load_file(tmp_path / "out/model.safetensors"))
    answered = loraft("inspect-layers", "out", "--json", cwd=tmp_path)
    assert json.loads(answered.stdout)["model_type"] == "marian"
    assert "is there already" in refused(loraft("convert", str(translator / "model"), "out", cwd=tmp_path))


@pytest.mark.slow
def test_c41_a_pickle_that_would_run_is_refused_by_the_command_line(translator: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.bin").write_bytes(planted(tmp_path / "ran"))
    said = refused(loraft("convert", "evil.bin", "out", cwd=tmp_path))
    assert "evil.bin" in said
    assert [file.name for file in tmp_path.iterdir()] == ["evil.bin"]


def test_a_name_of_nothing_is_told(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), "nobody/nothing", "a/b/c", ""):
        with pytest.raises(ModelError):
            convert(name, tmp_path / "out")

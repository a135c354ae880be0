"""What headers tell: files cut short, shards and tensors missing, pickles that are never opened."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from loraft.errors import ModelError
from loraft.models.base_files import as_model_names
from loraft.models.safetensors_index import check_weights, expected_tensors, fingerprint, read_headers
from tests.tiny import TINY_MODEL_TYPES, save_tiny, tiny_model


def check(folder: Path, model: PreTrainedModel) -> None:
    check_weights(folder, expected_tensors(model), as_model_names(model, read_headers(folder)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def sharded(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    return tmp_path / "shards"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write the folder's tensors anew, after `edit`."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_each_familys_own_files_are_complete(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    check(tmp_path, model)


def test_headers_are_the_tensors(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for headers in (read_headers(folder), read_headers(sharded(tmp_path))):
        assert {name: header.shape for name, header in headers.items()} == {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }
        assert {header.dtype for header in headers.values()} == {"F32"}


@pytest.mark.parametrize("kept", [0, 4, 8, 500, 0.5, -1])
def test_a_file_cut_short_is_named_with_its_bytes(folder: Path, kept: float) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match=r"model\.safetensors: is (cut short|not a safetensors file)") as caught:
        read_headers(folder)
    assert f"{file.stat().st_size:,}" in str(caught.value)
    if kept in (0.5, -1):
        assert f"of {len(whole):,} bytes" in str(caught.value)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [9, 2]}}']
)
def test_a_wrong_header_is_an_error(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="header"):
        read_headers(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        read_headers(folder)


def test_a_tensor_that_two_shards_hold_otherwise_is_refused(tmp_path: Path) -> None:
    """Of two the last file has the one that transformers takes, whatever the index lists; other programs do not."""
    folder = sharded(tmp_path)
    first, *_, last = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: tensor}, last)
    assert name in read_headers(folder)
    save_file({**load_file(last), name: -tensor}, last)
    with pytest.raises(ModelError, match="stands in another file") as caught:
        read_headers(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_reaches_no_other_files(tmp_path: Path, shard: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match=r"not \.safetensors files beside it"):
        read_headers(tmp_path)


def test_an_index_that_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    """It looks for the metadata, which other programs leave out."""
    folder, model = sharded(tmp_path), tiny_model("llama")
    index = folder / "model.safetensors.index.json"
    del (held := json.loads(index.read_text()))["metadata"]
    index.write_text(json.dumps(held))
    with pytest.raises(KeyError, match="metadata"):
        type(model).from_pretrained(folder)
    with pytest.raises(ModelError, match=r"index\.json: has no \"metadata\""):
        check(folder, model)
    index.write_text(json.dumps({"metadata": {}, **held}))
    check(folder, model)
    type(model).from_pretrained(folder)


def test_c24_missing_tensors_are_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 of 30 tensors are missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        check(folder, tiny_model("llama"))


def test_c24_other_shapes_are_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \[31\], and config\.json makes it \[32\]"):
        check(folder, tiny_model("llama"))


def test_numbers_that_are_not_floating_are_refused(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    with pytest.raises(ModelError, match="holds I8 numbers"):
        check(folder, tiny_model("llama"))


def test_tied_weights_need_not_be_there_and_untied_ones_must(tmp_path: Path) -> None:
    tied = tiny_model("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in expected_tensors(tied)
    tied.save_pretrained(tmp_path)
    check(tmp_path, tied)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        check(tmp_path, tiny_model("llama"))


def test_names_without_their_first_part_and_older_names_are_understood(tmp_path: Path) -> None:
    for model_type, renamed in (("gpt2", ("transformer.", "")), ("gpt_neox", ("lm_head", "embed_out"))):
        folder = save_tiny(tmp_path / model_type, model_type)
        tensors = load_file(folder / "model.safetensors")
        save_file({name.replace(*renamed): value for name, value in tensors.items()}, folder / "model.safetensors")
        check(folder, tiny_model(model_type))


def test_c41_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "exploded").touch, ())

    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"pickled \(model\.pt, pytorch_model\.bin\)") as caught:
        read_headers(tmp_path)
    assert "loraft.convert(" in str(caught.value)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError):
        read_headers(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights"):
        read_headers(tmp_path)


def test_a_fingerprint_is_of_the_weights_not_of_their_files(folder: Path, tmp_path: Path) -> None:
    first = fingerprint(folder)
    assert first == fingerprint(sharded(tmp_path))
    assert first.startswith("sha256:")

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][-1, -1] += 1

    change(folder, nudge)
    assert fingerprint(folder) != first

"""Which files are meant, and what they become; what cannot be meant is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.converting import pickled_weights
from loraft.converting.pickled_weights import find_weights
from loraft.errors import ModelError


def folder_of(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return str(folder)


@pytest.mark.parametrize(
    ("names", "becomes"),
    [
        (["pytorch_model.bin", "optimizer.pt", "other.pt"], {"pytorch_model.bin": "model.safetensors"}),
        (["adapter_model.bin", "adapter_config.json"], {"adapter_model.bin": "adapter_model.safetensors"}),
        (["weights.pt", "training_args.bin", "rng_state_0.pth", "optimizer.pt"], {"weights.pt": "model.safetensors"}),
    ],
)
def test_the_weights_of_a_folder_are_found(names: list[str], becomes: dict[str, str], tmp_path: Path) -> None:
    found = find_weights(folder_of(tmp_path / "model", *names), None)
    assert {file.name: name for file, name in found.files.items()} == becomes


def test_a_file_of_a_folder_may_be_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "a.pt", "b.pt")
    assert [*find_weights(f"{folder}/b.pt", None).files] == [tmp_path / "model/b.pt"]


def test_shards_are_numbered_as_they_are_listed(tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path / "model", "pytorch_model-1.bin", "pytorch_model-2.bin"))
    index = {"weight_map": {"a": "pytorch_model-2.bin", "b": "pytorch_model-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = find_weights(str(folder), None)
    assert list(found.files.values()) == [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert found.listed == index["weight_map"]
    (folder / "pytorch_model-1.bin").unlink()
    with pytest.raises(ModelError, match="is missing, and the index lists it"):
        find_weights(str(folder), None)


@pytest.mark.parametrize("shard", ["../outside.bin", "/etc/passwd", "a/b.bin", "x.safetensors"])
def test_an_index_that_leaves_its_folder_is_refused(shard: str, tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path / "model"))
    folder_of(tmp_path, "outside.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match=r"lists files that are not \.bin files beside it"):
        find_weights(str(folder), None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json"], "no pickled weights"),
        (["model.safetensors", "pytorch_model.bin"], r"has safetensors already \(model.safetensors\)"),
        (["a.pt", "b.bin"], "any of a.pt, b.bin may hold the weights"),
    ],
)
def test_what_cannot_be_meant_is_refused(names: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        find_weights(folder_of(tmp_path / "model", *names), None)
    assert caught.value.problems[0].remedy


@pytest.mark.parametrize("source", ["builtin:smollm2-135m-instruct", "model.gguf", "model.safetensors"])
def test_what_is_read_as_it_is_needs_no_conversion(source: str) -> None:
    with pytest.raises(ModelError, match="reads it as it is"):
        find_weights(source, None)


def test_a_hub_model_with_safetensors_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_weights, "files_at_hub", lambda *_: ["onnx/x.safetensors", "model.safetensors"])
    monkeypatch.setattr(pickled_weights, "from_hub", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(ModelError, match=r"safetensors already \(model.safetensors\)"):
        find_weights("org/name", "main")


def test_of_a_hub_model_the_pickles_are_fetched_and_no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder_of(tmp_path, "pytorch_model.bin")
    asked: list[str] = []
    monkeypatch.setattr(pickled_weights, "files_at_hub", lambda *_: [])
    monkeypatch.setattr(
        pickled_weights, "from_hub", lambda name, revision, patterns, key: asked.extend(patterns) or tmp_path
    )
    assert [*find_weights("org/name", None).files] == [tmp_path / "pytorch_model.bin"]
    assert "pytorch_model*.bin" in asked
    assert not [pattern for pattern in asked if pattern.endswith(".py")]


def test_a_revision_is_of_the_hub_alone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only Hub models have revisions"):
        find_weights(str(tmp_path), "main")

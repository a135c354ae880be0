"""What is known of a run before anything of it is decided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loraft.errors import InvalidInputError
from loraft.models import sources
from loraft.planning.known_run import known_run
from tests.tiny import save_tiny, with_head_apart
from tests.training.building import ROWS_OF, tiny_config, write_rows


@pytest.mark.parametrize(
    ("saved", "layers"), [([], 1), (["lm_head"], 1), (["embed_tokens"], 3), (["layers.1.input_layernorm"], 2)]
)
def test_layers_above_a_module_that_is_trained_whole_keep_activations(
    tmp_path: Path, saved: list[str], layers: int
) -> None:
    config = tiny_config(tmp_path, lora__layers="last:1", lora__modules_to_save=saved)
    assert known_run(config).shape.graph_layers("decoder") == layers


def test_a_head_that_the_files_have_apart_is_counted(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", tie_word_embeddings=True)
    write_rows(tmp_path / "train.jsonl", ROWS_OF["causal_lm"]())
    config = tiny_config(tmp_path, model__add_tokens=["<new>"])
    tied = known_run(config).shape
    head = with_head_apart(tmp_path / "model")
    apart = known_run(config).shape
    assert apart.total_parameters - tied.total_parameters == head.numel()
    assert apart.trainable_parameters - tied.trainable_parameters == head.shape[1]
    assert any("ties lm_head.weight and model.embed_tokens.weight" in note for note in apart.notes)


def test_weights_that_the_model_has_no_place_for_are_told(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert not any("no place" in note for note in known_run(config).notes)
    file = tmp_path / "model/config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "num_hidden_layers": written["num_hidden_layers"] - 1, "layer_types": None}))
    (note,) = (note for note in known_run(config).notes if "no place" in note)
    assert f"model.layers.{written['num_hidden_layers'] - 1}.input_layernorm.weight" in note


def test_a_head_that_a_classifier_has_no_use_for_is_not_told(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, task="seq_cls")
    save_tiny(tmp_path / "model", tie_word_embeddings=False)
    notes = known_run(config).notes
    assert any("the base has no head for classes" in note for note in notes)
    assert not any("no place" in note for note in notes)


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    file = Path(config.model.name_or_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 0}))
    with pytest.raises(InvalidInputError, match=r"model\.name_or_path: .* has no layers at model\.layers"):
        known_run(config)


@pytest.mark.parametrize("fetched", [0, 1, 3])
def test_a_hub_model_in_shards_is_planned_for_before_all_of_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: int
) -> None:
    config = tiny_config(tmp_path)
    model = Path(config.model.name_or_path)
    index: dict[str, str] = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        shard = f"model-{len(index) % 3 + 1:05}-of-00003.safetensors"
        index[name] = shard
        tensors = load_file(model / shard) if (model / shard).is_file() else {}
        save_file(tensors | {name: tensor}, model / shard)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for shard in sorted(set(index.values()))[fetched:]:
        (model / shard).unlink()
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(model))
    of_the_hub = config.model_copy(update={"model": config.model.model_copy(update={"name_or_path": "org/name"})})
    assert known_run(of_the_hub).shape.depths == {"decoder": 3}
    if fetched < 3:
        with pytest.raises(InvalidInputError, match="the file is missing, and the index lists it"):
            known_run(config)

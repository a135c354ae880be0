"""What weights the tensors of a quantized model stand for, by what its config.json says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraft.config.sections import ModelSection
from loraft.errors import ModelError
from loraft.models.auto_model import meta_model
from loraft.models.base_files import base_files, unpacked_tensors
from loraft.models.device import select_device
from loraft.models.load_model import load_config, load_model
from loraft.models.packed_weights import weight_headers
from tests.stored import BY_BITSANDBYTES, declare, save_stored
from tests.tiny import save_tiny

NAME = "model.layers.0.mlp.up_proj.weight"


def unpacked(folder: Path) -> torch.Tensor:
    """One of the weights."""
    config = load_config(ModelSection(name_or_path=str(folder)))
    return unpacked_tensors(base_files(config, folder), torch.float32)[NAME]


@pytest.mark.parametrize("said", [{}, {"checkpoint_format": None}, {"checkpoint_format": "GPTQ"}])
def test_a_layout_that_is_not_said_or_is_in_capitals_is_the_usual_one(tmp_path: Path, said: dict[str, Any]) -> None:
    folder = save_stored(tmp_path / "model", "gptq")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    expected = unpacked(folder)
    assert settings.pop("checkpoint_format") == "gptq"
    declare(folder, settings | said)
    assert torch.equal(unpacked(folder), expected)


def test_biases_under_the_names_of_the_files_are_the_models(tmp_path: Path) -> None:
    """As in files of models that see, of which transformers renames every tensor; here a first part is not there."""
    folder = save_stored(tmp_path / "model", "awq", "qwen2")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): each for name, each in tensors.items()}, folder / "model.safetensors")
    model = ModelSection(name_or_path=str(folder), dtype="float32")
    loaded = load_model(model, select_device(model))
    name = "model.layers.0.self_attn.q_proj.bias"
    assert tensors[name].any()
    assert torch.equal(loaded.model.get_parameter(name), tensors[name])


@pytest.mark.parametrize(("rows", "blocks"), [(101, 4), (48, 2)])
def test_blocks_of_fp8_that_end_beyond_a_weight_are_refused_before_it_is_loaded(
    tmp_path: Path, rows: int, blocks: int
) -> None:
    """As those of DeepSeek-V3's kv_a_proj_with_mqa, whose 576 rows are four and a half blocks."""
    folder = save_stored(tmp_path / "model", "fp8")
    tensors = load_file(folder / "model.safetensors")
    scales = f"{NAME}_scale_inv"
    cut = {NAME: tensors[NAME][:rows].clone(), scales: tensors[scales][:blocks].clone()}
    save_file(tensors | cut, folder / "model.safetensors")
    with pytest.raises(ModelError, match="do not part its") as caught:
        unpacked(folder)
    assert NAME in str(caught.value)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_plain_weights_that_a_config_calls_quantized_are_refused(tmp_path: Path, kind: str) -> None:
    """A model that was merged, and kept the settings of the base that its adapter was trained on."""
    folder = save_tiny(tmp_path / "model")
    skeleton = meta_model(load_config(ModelSection(name_or_path=str(folder))))
    settings = {name: value for name, value in BY_BITSANDBYTES[kind].items() if "dtype" not in name}
    declare(folder, {"quant_method": "bitsandbytes", **settings})
    with pytest.raises(ModelError, match="the files hold plain ones") as caught:
        weight_headers(folder, skeleton)
    assert caught.value.problems[0].key == "quantization_config"

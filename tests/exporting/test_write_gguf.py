"""Where a GGUF file goes: what is there is not lost, and nothing that is half is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft import api
from loraft.errors import NonFiniteError, RunFolderError
from tests.inference.voices import adapter_in
from tests.tiny import save_tiny
from tests.words import Wording


def test_what_is_there_is_replaced_only_where_that_is_asked_for(tmp_path: Path, wording: Wording) -> None:
    model, out = str(save_tiny(tmp_path / "model")), tmp_path / "m.gguf"
    out.write_text("mine")
    (tmp_path / "Modelfile").write_text("mine too")
    for place, ollama in ((out, False), (tmp_path / "m.bin", False), (tmp_path / "other.gguf", True)):
        with pytest.raises(RunFolderError) as caught:
            api.export(model, place, ollama=ollama)
        wording(str(caught.value))
    assert (out.read_text(), (tmp_path / "Modelfile").read_text()) == ("mine", "mine too")
    report = api.export(model, out, ollama=True, overwrite=True)
    assert report.modelfile == tmp_path / "Modelfile"
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./m.gguf\n")
    with pytest.raises(RunFolderError):  # it would be read while it is written
        api.export(str(out), out, overwrite=True)


def test_a_system_prompt_is_told_as_left_out_where_nothing_beside_the_file_has_it(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "adapter", save_tiny(tmp_path / "base"), system_prompt="Be brief.")
    alone = api.export(str(adapter), tmp_path / "m.gguf").warnings
    beside = api.export(str(adapter), tmp_path / "other" / "m.gguf", ollama=True)
    assert set(alone) - set(beside.warnings) == {each for each in alone if "system prompt" in each}
    assert len(alone) == len(beside.warnings) + 1
    assert "SYSTEM" in (tmp_path / "other" / "Modelfile").read_text()


def test_a_number_that_is_too_large_for_the_type_leaves_the_place_as_it_was(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model, out = save_tiny(tmp_path / "model"), tmp_path / "m.gguf"
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.tensor(1e5)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="bf16"):
        api.export(str(model), out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert api.export(str(model), out, outtype="bf16").types == {"bf16": 23, "f32": 7}

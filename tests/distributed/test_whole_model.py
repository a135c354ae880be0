"""A model written tensor by tensor is the one that transformers writes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loraft.distributed import whole_model
from loraft.distributed.whole_model import gathered_in_turn, is_written_one_by_one, write_whole_model
from loraft.models.registry import FAMILIES
from tests.tiny import mostly_slow, tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("family", mostly_slow(sorted(FAMILIES), "mixtral", "bart"))
def test_each_family_is_written_as_transformers_writes_it(tmp_path: Path, family: str) -> None:
    """Experts one by one, and what is tied once."""
    model = tiny_model(family)
    assert is_written_one_by_one(model)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_whole_model(model, gathered_in_turn(model, keep=True), tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_large_model_is_several_files_that_transformers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_model, "MOST_BYTES", 30_000)
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    write_whole_model(model, gathered_in_turn(model, keep=True), tmp_path)
    assert len(list(tmp_path.glob("model-0000*-of-0000*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(weight.equal(loaded.get_parameter(name)) for name, weight in model.named_parameters())

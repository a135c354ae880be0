"""A mixture of experts is trained, experts and all: each that saw a token changes, and PEFT alone gives the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loraft import api
from loraft.config.schema import RunConfig
from loraft.errors import InvalidInputError
from loraft.kernels.packed_attention import ROWS
from loraft.models.registry import FAMILIES
from loraft.planning.run_plan import plan_run
from loraft.tasks.batches import BatchLayout
from loraft.tasks.loss import CausalLMLoss
from loraft.tokenization.examples import Example
from tests.tiny import tiny_model
from tests.training.building import tiny_config

EXPERTS = "model.layers.{}.mlp.experts.{}"
IDS = torch.tensor([[5, 9, 200, 31, 7, 77, 140, 12]])


def config_of(folder: Path, **overrides: object) -> RunConfig:
    return tiny_config(folder, model_type="mixtral", training__save_steps=2, training__max_steps=4, **overrides)


@pytest.mark.slow
def test_every_expert_is_trained_merged_and_served_by_peft(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    notes = plan_run(config).notes
    assert any(note.startswith("lora.experts: 6 tensors of experts get 9,984 of") for note in notes), notes
    api.train(config)
    report = api.merge(str(tmp_path / "run"), tmp_path / "merged")
    assert report.max_abs_logit_difference < 1e-4
    base, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("model", "merged"))
    for layer in range(3):
        for name in ("gate_up_proj", "down_proj"):
            before, after = (model.get_parameter(EXPERTS.format(layer, name)) for model in (base, merged))
            assert ((after - before).abs().amax((1, 2)) > 0).all(), (layer, name)
        router = f"model.layers.{layer}.mlp.gate.weight"
        assert torch.equal(base.get_parameter(router), merged.get_parameter(router))
    with torch.no_grad():
        by_peft = PeftModel.from_pretrained(base, tmp_path / "run/adapter")(input_ids=IDS).logits
        torch.testing.assert_close(merged(input_ids=IDS).logits, by_peft, atol=1e-5, rtol=1e-5)
    assert {name for name in load_file(next((tmp_path / "merged").glob("*.safetensors"))) if "experts" in name} == {
        name for name in load_file(next((tmp_path / "model").glob("*.safetensors"))) if "experts" in name
    }


@pytest.mark.slow
def test_a_mixture_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    api.train(config)
    whole = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    first = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 2})})
    api.train(first, overwrite=True)
    api.train(config, resume=True)
    resumed = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_experts_are_left_out_where_the_config_says_so(tmp_path: Path) -> None:
    targets = plan_run(config_of(tmp_path, lora__experts=False)).shape.targets
    assert targets is not None
    assert targets.weights == ()
    assert {name.rpartition(".")[2] for name in targets.modules} == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(("key", "value"), [("dropout", 0.1), ("use_dora", True), ("init", "pissa")])
def test_what_experts_cannot_have_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match="experts of a mixtral are adapted as parameters") as caught:
        plan_run(config_of(tmp_path, **{f"lora__{key}": value}))
    assert [problem.key for problem in caught.value.problems] == [f"lora.{key}"]


def test_c49_padding_and_other_rows_change_no_loss() -> None:
    """C49: routers send padding to experts too, and no real token's loss knows of it."""
    loss = CausalLMLoss(tiny_model("mixtral"), FAMILIES["mixtral"])
    texts = [list(range(5, 5 + length)) for length in (4, 19, 9)]
    rows = [Example(ids, ids, where="a test", trained=len(ids) - 1, tokens=len(ids)) for ids in texts]
    with torch.no_grad():
        alone = sum(loss(loss.collate([row], BatchLayout(packed=False, pad_id=0))) for row in rows)
        for packed in (False, True):
            if packed:
                loss.model.set_attn_implementation(ROWS)
            together = loss(loss.collate(rows, BatchLayout(packed=packed, pad_id=0)))
            torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-6)

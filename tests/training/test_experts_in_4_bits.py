"""QLoRA of a mixture of experts: its experts are in 4 bits too, adapted or not, and all that follows agrees."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loraft import api
from loraft.adapters.metadata import adapter_in
from loraft.baselines.measure_method import frozen_bytes, weight_bytes
from loraft.config.schema import RunConfig
from loraft.config.sections import QuantizationSection
from loraft.errors import NonFiniteError
from loraft.kernels.packed_experts import PackedExperts
from loraft.models.modules import modules_of
from loraft.models.probe import spec_of
from loraft.models.quantize import compute_in, experts_in_4_bits
from loraft.planning.run_plan import RunPlan, plan_run
from loraft.training.train_step import Throughput, take_step
from tests.cli.running import loraft
from tests.training.building import Recorder, tiny_config, tiny_fit
from tests.words import Wording
from tests.zoo.models import build, save

IDS = torch.tensor([[5, 9, 200, 31, 7, 77, 140, 12]])


def config_of(folder: Path, model_type: str = "mixtral", **overrides: object) -> RunConfig:
    if model_type != "mixtral" and not (folder / "model").exists():
        tiny_config(folder)  # for its rows
        save(build(model_type, "causal"), folder / "model")
    settings = {"method": "qlora", "data__max_length": 128, "training__max_steps": 4, "training__save_steps": 2}
    return tiny_config(folder, model_type="mixtral", **(settings | overrides))


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "run/adapter/adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("experts", [True, False])
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "qwen3_moe", "granitemoehybrid", "glm4_moe"])
def test_from_a_config_to_a_merged_model(tmp_path: Path, model_type: str, experts: bool) -> None:
    """The merged model is the adapted one, and PEFT alone gives the same on the base as it was in training."""
    config = config_of(tmp_path, model_type, lora__experts=experts, training__max_steps=6)
    api.train(config)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(losses[3:]) < sum(losses[:3]), "the second epoch has the rows of the first"
    assert api.merge(str(tmp_path / "run"), tmp_path / "merged").max_abs_logit_difference < 1e-4
    run, _ = tiny_fit(config)
    base = run.adapted.model.unload()
    compute_in(base, torch.float32)
    assert not modules_of(base, PackedExperts)
    by_peft = PeftModel.from_pretrained(base, tmp_path / "run/adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, by_peft(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_gradients_are_those_on_the_dequantized_experts(tmp_path: Path) -> None:
    """To rounding, and with gradient checkpointing too."""
    found: list[dict[str, Tensor]] = []
    for plain, checkpointing in ((False, False), (False, True), (True, False)):
        run, _ = tiny_fit(config_of(tmp_path, training__gradient_checkpointing=checkpointing))
        for parameter in run.adapted.trainable.values():
            parameter.data += 0.05  # so that B is not zero
        if plain:
            as_plain(run.adapted.model)
        run.optimizer = recorder = Recorder(run)
        run.adapted.model.train()
        window = next(run.plan.batches.windows(run.plan.data.train, 0, 0, (0, 0)))
        take_step(run, 1, run.prepare(window), Throughput(0))
        found.append(recorder.steps[0])
    assert any("experts" in name for name in found[0])
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-6)


def as_plain(model: nn.Module) -> None:
    """Give an adapted model its experts as ordinary tensors, under PEFT's own wrapper."""
    from peft.tuners.lora import ParamWrapper

    from loraft.kernels.packed_experts import let_go

    for experts in modules_of(model, PackedExperts).values():
        let_go(experts, torch.float32)
    for module in model.modules():
        if isinstance(module, ParamWrapper):
            module.__class__ = ParamWrapper


@pytest.mark.slow
def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    api.train(config)
    whole = adapter(tmp_path)
    first = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 2})})
    api.train(first, overwrite=True)
    api.train(config, resume=True)
    resumed = adapter(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def planned(folder: Path, **overrides: object) -> RunPlan:
    return plan_run(config_of(folder, **overrides))


@pytest.mark.slow
def test_what_is_planned_is_what_is_held(tmp_path: Path) -> None:
    """In 4 bits half a byte a weight and the constants; in 16 the bytes are said."""
    run, _ = tiny_fit(config_of(tmp_path, model__dtype="bfloat16"))
    held = weight_bytes(run.adapted)["weights"]
    assert run.plan.memory.weights == pytest.approx(held, rel=0.15)  # small tensors round up to whole blocks
    assert frozen_bytes(run.adapted, "nf4")["nf4"] > run.plan.shape.few_bits.parameters / 2
    in_16_bits = planned(tmp_path, model__dtype="bfloat16", quantization__experts=False)
    numbers = 3 * 18_432
    assert in_16_bits.memory.weights - run.plan.memory.weights == pytest.approx(numbers * (2 - 0.5 - 0.016), rel=0.01)
    said = f"the {numbers:,} weights of the experts are not quantized: in 16 bits they take {2 * numbers:,} bytes"
    assert said in in_16_bits.notes
    assert said in planned(tmp_path, quantization__type="int8").notes
    assert not any("not quantized" in note for note in run.plan.notes)


def test_experts_that_are_kept_for_the_backward_pass_are_planned_for(tmp_path: Path) -> None:
    """Adapted ones in 16 bits are, in each layer; those in 4 bits are dequantized in one at a time."""
    packed, plain = (planned(tmp_path, quantization__experts=experts).shape.experts for experts in (True, False))
    assert (packed.packed, packed.adapted, packed.kept) == (18_432, 18_432, 0)
    assert (plain.packed, plain.adapted, plain.kept) == (0, 18_432, 18_432)
    kept = [
        planned(tmp_path, quantization__experts=False, training__gradient_checkpointing=each) for each in (True, False)
    ]
    assert kept[1].memory.activations - kept[0].memory.activations >= 2 * 18_432 * 4


@pytest.mark.slow
def test_an_adapter_of_before_says_that_experts_were_in_16_bits(tmp_path: Path) -> None:
    api.train(config_of(tmp_path, training__max_steps=1))
    folder = tmp_path / "run/adapter"
    assert adapter_in(folder).quantization == QuantizationSection(compute_dtype="float32")
    record = json.loads((folder / "loraft.json").read_text())
    del record["quantization"]["experts"]
    (folder / "loraft.json").write_text(json.dumps(record))
    now = adapter_in(folder).quantization
    assert now is not None
    assert not now.experts


@pytest.mark.slow
def test_an_expert_that_is_not_finite_is_named(tmp_path: Path) -> None:
    run, _ = tiny_fit(config_of(tmp_path))
    name, experts = next(iter(modules_of(run.adapted.loaded.model, PackedExperts).items()))
    nested = experts.packed["down_proj"].nested
    assert nested is not None
    nested[1].fill_(torch.nan)
    window = next(run.plan.batches.windows(run.plan.data.train, 0, 0, (0, 0)))
    with pytest.raises(NonFiniteError, match=f"{name.replace('.base_layer', '')}.down_proj holds NaN"):
        take_step(run, 1, run.prepare(window), Throughput(0))


@pytest.mark.slow
def test_experts_that_are_read_past_their_module_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is found by experiment: there the tensor that stands in for them is read."""
    model = build("olmoe", "causal")
    assert experts_in_4_bits(model, spec_of(model.config, "decoder"), QuantizationSection())
    block = type(model.model.layers[0].mlp)
    forward = block.forward

    def past(self: nn.Module, *given: Tensor) -> Tensor:
        result: Tensor = forward(self, *given)
        return result + self.experts.down_proj.sum()

    monkeypatch.setattr(block, "forward", past)
    config = copy.deepcopy(model.config)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 12_345.0}  # not looked into yet
    spec = spec_of(config, "decoder")
    assert not spec.packs_experts
    assert experts_in_4_bits(model, spec, QuantizationSection()) == ()


def test_they_are_not_trained_whole_and_the_config_may_leave_them(tmp_path: Path, wording: Wording) -> None:
    config = config_of(tmp_path, lora__experts=False, lora__modules_to_save=["mlp.experts"])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    refused = loraft("check", "run.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    wording(refused.stderr)
    done = loraft("check", "run.yaml", "quantization.experts=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights of the experts are not quantized" in done.stderr

"""Kinds of adapters from config to merged model: trained, resumed to the same bytes, taken by plain peft."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loraft import api
from loraft.adapters.resolve_target import resolve_target
from loraft.config.schema import RunConfig
from loraft.dataset.streaming import StreamingSampler
from loraft.inference.requests import ModelRequest
from loraft.inference.session import open_session
from loraft.io.atomic import write_json
from loraft.planning.run_plan import plan_run
from loraft.training.built_model import build_model
from loraft.training.run_dir import saved_bytes
from loraft.training.start_batches import begin_from_rows
from tests.adapters.setting import disturb, logits
from tests.cli.running import loraft
from tests.training.building import pairs, tiny_config, tiny_fit, write_rows
from tests.training.test_resume import begin

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "principal": {"model_type": "llama", "lora__init": "pissa", "lora__target_modules": ["q_proj", "down_proj"]},
    "all biases": {"model_type": "gpt2", "lora__bias": "all", "lora__layers": "last:1"},
    "experts": {"model_type": "mixtral", "lora__target_parameters": EXPERTS, "lora__layers": "last:2"},
    "orthogonal": {"model_type": "gpt2", "lora__init": "olora", "lora__dropout": 0.1, "lora__use_rslora": True},
    "adapted biases": {"model_type": "qwen2", "lora__bias": "lora_only"},
    "what is read": {"model_type": "qwen2", "lora__init": "eva", "lora__rank_pattern": {"k_proj": 2}},
    "rounding": {"model_type": "llama", "lora__init": "loftq", "method": "qlora"},
}


def config_in(folder: Path, kind: str, run: str) -> RunConfig:
    return tiny_config(folder, **KINDS[kind], training__output_dir=str(folder / run), training__save_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_resumed_merged_and_taken_by_peft(tmp_path: Path, kind: str) -> None:
    """C48: on the base as it is the adapter computes what was trained."""
    whole = api.train(config_in(tmp_path, kind, "whole"))
    begin(config_in(tmp_path, kind, "run"))
    again = api.train(config_in(tmp_path, kind, "run"), resume=True)
    name = "adapter_model.safetensors"
    assert (again.saved / name).read_bytes() == (whole.saved / name).read_bytes()
    session = open_session(ModelRequest(str(again.saved)))
    trained = logits(session.model)
    if "method" not in KINDS[kind]:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        untrained = logits(base)
        theirs = logits(PeftModel.from_pretrained(base, again.saved).eval())
        torch.testing.assert_close(theirs, trained, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(trained, untrained, atol=1e-3)
    report = api.merge(str(again.saved))
    assert report.max_abs_logit_difference is not None
    assert report.max_abs_logit_difference <= 1e-3


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", ["all biases", "principal", "experts"])
def test_check_counts_all_that_is_trained(tmp_path: Path, kind: str) -> None:
    config = config_in(tmp_path, kind, "run")
    plan = plan_run(config)
    adapted = build_model(plan)
    assert plan.shape.trainable_parameters == sum(weight.numel() for weight in adapted.trainable.values())
    assert sum(each.numbers for each in plan.shape.trained) == plan.shape.trainable_parameters
    if kind == "principal":
        assert saved_bytes(plan).trained == 8 * plan.shape.trainable_parameters
    if kind == "all biases":
        assert plan.shape.graph_layers("decoder") == 3


def test_what_is_saved_says_what_it_is(tmp_path: Path) -> None:
    result = api.train(config_in(tmp_path, "principal", "run"))
    declared = json.loads((result.saved / "adapter_config.json").read_text())
    assert (declared["r"], declared["lora_alpha"], declared["init_lora_weights"]) == (8, 16, True)
    tensors = load_file(result.saved / "adapter_model.safetensors")
    assert {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key} == {8}
    assert resolve_target(str(result.saved)).adapter == result.saved


ADAPTED_BIASES = {"lora__bias": "lora_only"}
STARTS = {
    "biases": ("gpt2", {"bias": "lora_only", "fan_in_fan_out": True, "target_modules": ["c_attn"]}, ADAPTED_BIASES),
    "experts": ("mixtral", {"target_parameters": EXPERTS}, {"lora__target_parameters": EXPERTS}),
    "biases of B": ("qwen2", {"lora_bias": True}, {}),
    "some modules": ("llama", {"exclude_modules": ["v_proj"], "target_modules": ["q_proj", "v_proj"]}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STARTS)
def test_training_goes_on_from_an_adapter_that_peft_made(tmp_path: Path, kind: str) -> None:
    model_type, lora, section = STARTS[kind]
    tiny_config(tmp_path, model_type=model_type)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    made = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **lora}))
    disturb({name: weight for name, weight in made.named_parameters() if weight.requires_grad})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft takes a bias of B for a part of a matrix
        made.save_pretrained(tmp_path / "start")
    theirs = logits(made.eval())
    config = tiny_config(
        tmp_path,
        model_type=model_type,
        lora__target_modules=["c_attn" if model_type == "gpt2" else "q_proj"],
        lora__start_from=str(tmp_path / "start"),
        **section,
    )
    plan = plan_run(config)
    adapted = build_model(plan)
    adapted.set_training(False)
    torch.testing.assert_close(logits(adapted.model), theirs, atol=1e-5, rtol=1e-5)
    assert plan.shape.trainable_parameters == sum(weight.numel() for weight in adapted.trainable.values())
    before = {name: weight.clone() for name, weight in adapted.trainable.items()}
    result = api.train(config)
    session = open_session(ModelRequest(str(result.saved)))
    assert not torch.allclose(logits(session.model), theirs, atol=1e-3)
    after = dict(session.model.named_parameters())
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"type": "mixtral", "lora": {"target_parameters": ["mlp.expert.gate_up_proj"]}}, "lora.target_parameters"),
        ({"lora": {"init": "pissa", "start_from": "x"}}, "lora.init"),
        ({"lora": {"init": "loftq"}}, "lora.init"),
        ({"lora": {"target_parameters": ["mlp.experts.gate_up_proj"], "dropout": 0.1}}, "lora.dropout"),
        ({"lora": {"target_parameters": ["mlp.experts.gate_up_proj"], "use_dora": True}}, "lora.use_dora"),
        ({"lora": {"target_parameters": ["mlp.experts.gate_up_proj"], "init": "olora"}}, "lora.init"),
        ({"lora": {"target_parameters": ["mlp.expert.gate_up_proj"]}}, "lora.target_parameters"),
        ({"lora": {"target_parameters": ["q_proj.weight"]}}, "lora.target_parameters"),
        ({"lora": {"target_parameters": ["input_layernorm.weight"]}}, "lora.target_parameters"),
        ({"lora": {"target_parameters": ["embed_tokens.weight"]}}, "lora.target_parameters"),
        ({"lora": {"bias": "all"}}, "lora.bias"),
        ({"lora": {"bias": "lora_only"}}, "lora.bias"),
        ({"lora": {"init": "pissa", "r": 64}}, "lora.r"),
        ({"type": "mixtral", "lora": {"r": 4000}}, "lora.r"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_work_begins(
    tmp_path: Path, changes: dict[str, Any], key: str, wording: Any
) -> None:
    task = changes.get("task", "causal_lm")
    config = tiny_config(tmp_path, model_type=changes.get("type", "llama"))
    values = config.model_dump(mode="json", exclude_unset=True)
    write_json(tmp_path / "run.yaml", values | {"task": task, "lora": {"r": 4, **changes["lora"]}})
    done = loraft("check", "run.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert key in done.stderr
    wording(done.stderr)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("task", "besides"),
    [("causal_lm", {"lora__bias": "all"}), ("causal_lm", {"model__add_tokens": ["<call>"]}), ("seq_cls", {})],
)
def test_eva_begins_with_the_directions_of_what_is_read(tmp_path: Path, task: str, besides: dict[str, Any]) -> None:
    """The first right singular vectors of what a module reads at the tokens that are learned; B is zero."""
    model_type = "qwen2" if task == "causal_lm" else "bert"
    config = tiny_config(
        tmp_path,
        task=task,
        model_type=model_type,
        lora__init="eva",
        lora__r=2,
        training__per_device_train_batch_size=12,
        **besides,
    )
    run, _ = tiny_fit(config)
    before = {name: weight.clone() for name, weight in run.adapted.trainable.items()}
    drawn = torch.get_rng_state()
    begin_from_rows(run.plan, run.adapted, run.loss)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(weight.requires_grad for weight in run.adapted.trainable.values())
    name = next(name for name in before if "layers.0." in name or ("layer.0." in name and "lora_A" in name))
    module = run.adapted.model.get_submodule(name.partition(".lora_")[0])
    read: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    rows = [run.plan.data.train[row] for batch in run.plan.batches.epoch(0) for row in batch]
    with torch.no_grad():
        for row in rows:
            batch = run.batch([row])
            run.loss(batch)
            last = read.pop().flatten(0, 1)
            read.insert(0, last if batch.target_positions is None else last[batch.target_positions])
    hook.remove()
    learned = torch.cat(read)
    directions = torch.linalg.svd(learned - learned.mean(0), full_matrices=False)[2][:2]
    begun = module.lora_A["default"].weight.detach()
    assert float((directions @ begun.T).square().sum()) > 1.9, "the same two directions, but for what increments lose"
    changed = [name for name, weight in run.adapted.trainable.items() if not torch.equal(weight, before[name])]
    assert changed == [name for name in before if "lora_A" in name]


@pytest.mark.slow
def test_eva_tells_what_an_encoder_reads_from_what_a_decoder_reads(tmp_path: Path) -> None:
    """Sources and targets of one length too: cross-attention's keys come from the one, its queries from the other."""
    config = tiny_config(
        tmp_path, task="seq2seq_lm", lora__init="eva", lora__r=2, training__per_device_train_batch_size=12
    )
    write_rows(tmp_path / "train.jsonl", [{"source": row["target"], "target": row["target"]} for row in pairs()])
    run, _ = tiny_fit(config)
    begin_from_rows(run.plan, run.adapted, run.loss)
    (batch,) = (
        run.batch(rows)
        for window in run.plan.batches.windows(run.plan.data.train, 0, 0, (0, 0))
        for rows in window.batches
    )
    assert batch.attention_mask is not None
    of_source, of_target = batch.attention_mask.bool(), batch.labels != -100
    attention = "decoder.block.0.layer.1.EncDecAttention"
    for name, mask in (
        (f"{attention}.k", of_source),
        (f"{attention}.q", of_target),
        ("encoder.block.0.layer.0.SelfAttention.q", of_source),
    ):
        module = run.adapted.model.get_submodule(f"base_model.model.{name}")
        read: list[torch.Tensor] = []
        with (
            module.register_forward_pre_hook(lambda _, given, kept=read: kept.append(given[0].detach())),
            torch.no_grad(),
        ):
            run.loss(batch)
        learned = read[0][mask]
        directions = torch.linalg.svd(learned - learned.mean(0), full_matrices=False)[2][:2]
        begun = module.lora_A["default"].weight.detach()
        assert float((directions @ begun.T).square().sum()) > 1.9, name


@pytest.mark.slow
def test_eva_reads_a_stream_from_its_start_and_leaves_its_counts_alone(tmp_path: Path) -> None:
    begun = []
    for streaming in (False, True):
        config = tiny_config(
            tmp_path, lora__init="eva", lora__r=2, data__streaming=streaming, data__shuffle=False, data__packing="off",
            training__max_steps=2,
        )  # fmt: skip
        run, _ = tiny_fit(config)
        begin_from_rows(run.plan, run.adapted, run.loss)
        begun.append([weight.detach().clone() for name, weight in run.adapted.trainable.items() if "lora_A" in name])
    assert isinstance(run.plan.batches, StreamingSampler)
    assert not run.plan.batches.stream.counts
    assert all(torch.equal(one, other) for one, other in zip(*begun, strict=True))

"""The auxiliary loss of a mixture's routers: transformers' own, over real tokens alone, apart from the loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from loraft import api
from loraft.config.schema import RunConfig
from loraft.errors import InvalidInputError
from loraft.planning.run_plan import plan_run
from loraft.tasks.batches import Batch, BatchLayout
from loraft.tokenization.examples import IGNORED
from loraft.training.train_step import Throughput, evaluate_loss, take_step
from tests.cli.running import loraft
from tests.training.building import Recorder, tiny_config, tiny_fit
from tests.words import Wording
from tests.zoo.models import build, save

KEY = "training.router_aux_loss_coef"
TYPES = ("mixtral", "qwen3_moe", "gpt_oss", "olmoe", "granitemoehybrid", "qwen3_next", "jetmoe", "dbrx", "qwen3_vl_moe")
"""Probed ones but for the first; of different names for experts, coefficients and routers."""


def config_of(folder: Path, **overrides: object) -> RunConfig:
    return tiny_config(folder, **({"model_type": "mixtral", "training__router_aux_loss_coef": 0.1} | overrides))


def padded(batch: Batch) -> dict[str, Tensor]:
    """A padded batch as transformers reads it."""
    assert batch.real is not None
    assert batch.target_positions is not None
    labels = torch.full_like(batch.input_ids, IGNORED).flatten()
    labels[batch.target_positions + 1] = batch.labels
    return {"input_ids": batch.input_ids, "attention_mask": batch.real, "labels": labels.view_as(batch.input_ids)}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_learned_is_the_loss_of_transformers(tmp_path: Path, model_type: str) -> None:
    """To 1e-5, packed or padded, with the coefficient that the model's own config has."""
    if model_type != "mixtral":
        group = "multimodal" if model_type.endswith("_vl_moe") else "causal"
        tiny_config(tmp_path)  # for its rows
        save(build(model_type, group), tmp_path / "model")
    config = config_of(tmp_path, training__router_aux_loss_coef="auto", data__packing="off", data__max_length=128)
    run, _ = tiny_fit(config)
    batch = run.batch(run.plan.data.train)
    model = run.adapted.loaded.model.train()
    model.config.get_text_config().output_router_logits = False
    with torch.no_grad():
        theirs = model(**padded(batch), output_router_logits=True)
        loss, router_loss = run.loss.with_router_loss(batch)
        whole = loss / batch.targets + run.router_aux_loss_coef * router_loss
    torch.testing.assert_close(whole, theirs.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(router_loss, theirs.aux_loss, rtol=1e-5, atol=1e-5)
    assert run.router_aux_loss_coef > 0


@pytest.mark.slow
def test_c49_padding_counts_for_nothing(tmp_path: Path) -> None:
    """C49: rows end to end, with and without padding behind them, and padded rows have one loss of their routers."""
    found = []
    for packing, multiple in (("off", 1), ("auto", 1), ("auto", 64)):
        run, _ = tiny_fit(config_of(tmp_path, data__packing=packing))
        rows = run.plan.data.train
        batch = run.plan.task.collate(rows, BatchLayout(run.plan.layout.packed, pad_id=0, multiple_of=multiple))
        with torch.no_grad():
            found.append(run.loss.with_router_loss(batch))
    for loss, router_loss in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(router_loss, found[0][1], rtol=1e-5, atol=1e-5)


def gradient(folder: Path, **overrides: object) -> tuple[dict[str, Tensor], float | None, float]:
    """The gradient of the first step, the routers' loss and the loss."""
    run, _ = tiny_fit(config_of(folder, training__max_grad_norm=None, **overrides))
    run.optimizer = recorder = Recorder(run)
    clock = Throughput(0)
    run.adapted.model.train()
    take_step(run, 1, run.prepare(next(run.plan.batches.windows(run.plan.data.train, 0, 0, (0, 0)))), clock)
    return recorder.steps[0], clock.router_aux_loss, clock.loss


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_batches_of_a_step_count_by_their_tokens(tmp_path: Path, checkpointing: bool) -> None:
    """The gradient is that of Σ nll / trained tokens + coefficient · Σ tokens · loss of routers / Σ tokens."""
    sizes = {"training__per_device_train_batch_size": 2, "training__gradient_accumulation_steps": 3}
    found, router_loss, loss = gradient(tmp_path, training__gradient_checkpointing=checkpointing, **sizes)
    run, _ = tiny_fit(config_of(tmp_path, **sizes))
    model = run.adapted.model.train()
    window = next(run.plan.batches.windows(run.plan.data.train, 0, 0, (0, 0)))
    batches = [run.batch(rows) for rows in window.batches]
    tokens, targets = sum(batch.tokens for batch in batches), sum(batch.targets for batch in batches)
    parts = [run.loss.with_router_loss(batch) for batch in batches]
    of_routers = sum(part[1] * batch.tokens for part, batch in zip(parts, batches, strict=True)) / tokens
    (sum(part[0] for part in parts) / targets + 0.1 * of_routers).backward()
    assert router_loss == pytest.approx(of_routers.item(), rel=1e-6)
    assert loss == pytest.approx(sum(part[0].item() for part in parts) / targets, rel=1e-6)
    expected = {name: weight.grad for name, weight in run.adapted.trainable.items()}
    for name, each in found.items():
        torch.testing.assert_close(each, expected[name], rtol=1e-4, atol=1e-6)
    without, nothing, _ = gradient(tmp_path, training__router_aux_loss_coef=0, **sizes)
    assert nothing is None
    assert any(not torch.allclose(without[name], found[name], rtol=1e-3, atol=1e-6) for name in found)
    assert model.training


def test_batches_of_as_many_tokens_count_alike(tmp_path: Path) -> None:
    config = config_of(tmp_path, training__per_device_train_batch_size=1, training__gradient_accumulation_steps=3)
    run, _ = tiny_fit(config)
    row = run.plan.data.train[3]
    window = next(run.plan.batches.windows([row] * 12, 0, 0, (0, 0)))
    assert len(window.batches) == 3
    with torch.no_grad():
        alone = run.loss.with_router_loss(run.batch([row]))[1]
    take_step(run, 1, run.prepare(window), clock := Throughput(0))
    assert clock.router_aux_loss == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.slow
def test_it_resumes_bit_for_bit_and_is_logged_apart(tmp_path: Path) -> None:
    """A checkpoint between two logged steps keeps what was summed; the evaluation is of the loss alone."""
    shared = {"training__max_steps": 5, "training__logging_steps": 3, "training__save_steps": 2}
    config = config_of(tmp_path, data__eval=str(tmp_path / "train.jsonl"), training__eval_steps=5, **shared)
    api.train(config)
    whole, logged = load_file(tmp_path / "run/adapter/adapter_model.safetensors"), metrics(tmp_path)
    assert all(line["router_aux_loss"] > 1 for line in logged if "loss" in line)
    for later in ("step-000004", "step-000005"):
        shutil.rmtree(tmp_path / "run/checkpoints" / later)
    api.train(config, resume=True)
    resumed, again = load_file(tmp_path / "run/adapter/adapter_model.safetensors"), metrics(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    of_routers = [[line["router_aux_loss"] for line in lines if "loss" in line] for lines in (logged, again)]
    assert len(of_routers[0]) == 2
    assert of_routers[0] == of_routers[1]
    run, _ = tiny_fit(config)
    plain, _ = tiny_fit(config_of(tmp_path, training__router_aux_loss_coef=0))
    both = [evaluate_loss(each, run.plan.data.train, 4) for each in (run, plain)]
    assert both[0] == both[1]


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", ["no mixture", "no gradient", "attention below", "router"])
def test_where_it_can_have_no_gradient_it_is_refused(tmp_path: Path, case: str) -> None:
    """Only experts of the last layer: no router sees what is trained; its attention or a router changes that."""
    overrides: dict[str, object] = {"training__router_aux_loss_coef": 0.01}
    if case == "no mixture":
        overrides["model_type"] = "llama"
    else:
        layers = {"lora__layers": "last:1"}
        overrides |= {
            "no gradient": {"lora__target_modules": "mlp", **layers},
            "attention below": {"lora__target_modules": "all-linear", **layers},
            "router": {"lora__target_modules": "mlp", "lora__target_parameters": ["mlp.gate.weight"], **layers},
        }[case]
    if case in ("attention below", "router"):
        run, _ = tiny_fit(config_of(tmp_path, **overrides))
        router_loss = run.loss.with_router_loss(run.batch(run.plan.data.train))[1]
        assert router_loss.requires_grad
        return
    with pytest.raises(InvalidInputError) as caught:
        plan_run(config_of(tmp_path, **overrides))
    assert [problem.key for problem in caught.value.problems] == [KEY]


@pytest.mark.slow
def test_it_is_shown_beside_the_loss_and_refused_in_words(tmp_path: Path, wording: Wording) -> None:
    config = config_of(tmp_path, training__router_aux_loss_coef="auto", training__max_steps=1)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    done = loraft("train", "run.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{KEY} auto is 0.001" in done.stderr
    assert "  routers 2." in next(line for line in done.stderr.splitlines() if line.startswith("step 1/1"))
    refused = [
        loraft("check", "run.yaml", *changes, cwd=tmp_path)
        for changes in (["lora.layers=last:1", "lora.target_modules=mlp"], [f"{KEY}=-1"])
    ]
    assert [each.returncode for each in refused] == [2, 2]
    wording("".join(each.stderr for each in refused))

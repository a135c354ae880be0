"""The ways to train in little memory of a GPU: fed layers, inputs kept on the host, paged optimizers, loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraft import api
from loraft.optimization.optimizer import KINDS, optimizer_state
from loraft.planning.run_plan import plan_run
from loraft.training.built_model import build_model
from loraft.training.loop import fit
from tests.tiny import save_tiny
from tests.training.building import tiny_fit
from tests.training.wide import wide_config, wide_sizes

pytestmark = pytest.mark.gpu

DEPTH = 6
IN_16_BITS = {"model__dtype": "bfloat16"}
QLORA = {"method": "qlora", "training__optim": "adamw", **IN_16_BITS}


def config_of(folder: Path, output: str, **options: Any) -> Any:
    section = {"stream_layers": options.pop("stream")} if "stream" in options else {}
    if not (folder / "wide").exists():
        save_tiny(folder / "wide", "llama", **wide_sizes("llama") | {"num_hidden_layers": DEPTH})
    config = wide_config(
        folder, training__output_dir=str(folder / output), training__max_steps=4,
        data__eval=0.2, training__eval_steps=2, **options,
    )  # fmt: skip
    return config.model_copy(update={"model": config.model.model_copy(update=section)})


@pytest.mark.gpu(or_cpu=True)
@pytest.mark.parametrize("method", [IN_16_BITS, QLORA], ids=["lora", "qlora"])
@pytest.mark.parametrize("kept", [False, True, "offload"])
def test_fed_layers_and_kept_inputs_train_what_resident_ones_do(tmp_path: Path, method: Any, kept: Any) -> None:
    runs = [
        api.train(config_of(tmp_path, "resident", training__gradient_checkpointing=bool(kept), **method)),
        api.train(config_of(tmp_path, "fed", stream=True, training__gradient_checkpointing=kept, **method)),
    ]
    assert runs[1].eval_loss == pytest.approx(runs[0].eval_loss, rel=1e-3)
    ours, theirs = (load_file(run.saved / "adapter_model.safetensors") for run in runs)
    for name, tensor in theirs.items():
        # GPU kernels add in an order that changes from run to run, so bytes may differ; values may not.
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=1e-3)


def test_fed_weights_are_those_that_the_gpu_quantized(tmp_path: Path) -> None:
    resident = build_model(plan_run(config_of(tmp_path, "resident", **QLORA))).loaded
    fed = build_model(plan_run(config_of(tmp_path, "fed", stream=True, **QLORA))).loaded
    assert fed.stream is not None
    assert all(parameter.is_cuda for parameter in fed.model.parameters())
    for name, module in fed.model.named_modules():
        fed.stream.bring(module)
        for leaf, parameter in module.named_parameters(recurse=False):
            other = resident.model.get_submodule(name).get_parameter(leaf)
            if "lora_" not in name:
                assert torch.equal(parameter.data, other.data), f"{name}.{leaf}"
    assert all(host.is_pinned() for host in fed.stream._fed.hosts)


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_the_state_of_a_paged_optimizer_is_in_managed_memory(tmp_path: Path, optim: str) -> None:
    run, _ = tiny_fit(wide_config(tmp_path, **{**QLORA, "training__optim": optim}))
    weight = torch.nn.Parameter(torch.ones(2048, 2048, device="cuda"))
    weight.grad = torch.ones_like(weight)
    optimizer = KINDS[optim].build([{"params": [weight], "weight_decay": 0.0}], run.settings)
    held = torch.cuda.memory_allocated()
    optimizer.step()
    state = optimizer.state[weight]
    assert getattr(state["state1"], "is_paged", False)
    assert getattr(state["state2"], "is_paged", False)
    of_its_own = torch.cuda.memory_allocated() - held
    assert of_its_own < weight.numel() * weight.element_size() // 8, "torch's allocator has none of the moments"


def test_a_paged_optimizer_steps_where_its_state_does_not_fit(tmp_path: Path) -> None:
    """Of the memory that torch may take there is room for a weight and its gradient, and not for the moments."""
    run, _ = tiny_fit(wide_config(tmp_path, **{**QLORA, "training__optim": "paged_adamw_32bit"}))
    torch.cuda.empty_cache()
    size = 256 * 2**20
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * size) / total)
    try:
        weight = torch.nn.Parameter(torch.ones(size // 4, device="cuda").view(-1, 1024))
        weight.grad = torch.ones_like(weight)
        with pytest.raises(torch.OutOfMemoryError):
            KINDS["adamw"].build([{"params": [weight]}], run.settings).step()
        torch.cuda.empty_cache()
        KINDS["paged_adamw_32bit"].build([{"params": [weight], "weight_decay": 0.0}], run.settings).step()
        torch.cuda.synchronize()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_loading_holds_the_model_and_one_tensor_in_16_bits(tmp_path: Path) -> None:
    """Transformers takes memory for the whole at once and gives it back; what is then held is what was quantized."""
    config = config_of(tmp_path, "fed", stream=True, **QLORA)
    plan = plan_run(config)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    adapted = build_model(plan)
    largest = max(2 * inputs * outputs for inputs, outputs in plan.shape.few_bits.linear.values())
    held = torch.cuda.memory_allocated() - before
    assert adapted.loaded.stream is not None
    assert torch.cuda.max_memory_allocated() - before <= held + 2 * largest + 2**20


def test_the_state_of_an_optimizer_is_copied_to_main_memory_alone(tmp_path: Path) -> None:
    """A checkpoint of full fine-tuning would else need twice the state on the GPU, of which nothing was foreseen."""
    run, state = tiny_fit(config_of(tmp_path, "full", method="full", training__optim="adamw"))
    fit(run, state)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tensors, _ = optimizer_state(run.optimizer, run.adapted.trainable)
    assert torch.cuda.max_memory_allocated() == before
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}

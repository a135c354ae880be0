"""QLoRA (NF4, double quantization, paged optimizers) and LoRA in 16 bits on a GPU: train, resume, generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraft import api
from loraft.errors import Interrupted
from loraft.inference.requests import GenerationRequest
from loraft.kernels.fused.row_trials import CAPPED
from loraft.kernels.packed_attention import attend_rows
from loraft.planning.run_plan import plan_run
from loraft.tasks.batches import BatchLayout, collate_texts
from loraft.training.built_model import build_model
from tests.training.building import tiny_fit
from tests.training.test_every_combination import AS_ON_CUDA, task_of, train_two_steps
from tests.training.test_trainer import stop_at
from tests.training.wide import wide_config

pytestmark = pytest.mark.gpu

METHODS: dict[str, dict[str, Any]] = {
    "qlora": {"method": "qlora", "training__optim": "paged_adamw_8bit", "model__dtype": "bfloat16"},
    "qlora-32bit": {"method": "qlora", "training__optim": "paged_adamw_32bit", "model__dtype": "bfloat16"},
    "lora": {"model__dtype": "bfloat16"},
    "float16": {"model__dtype": "float16"},
    **{
        optim: {"model__dtype": "bfloat16", "training__optim": optim, "lora__r": 64}
        for optim in ("adafactor", "lion_8bit", "ademamix_8bit", "muon")
    },
    "noise": {
        "model__dtype": "bfloat16",
        "training__neftune_noise_alpha": 5.0,
        "training__label_smoothing_factor": 0.1,
    },
}


def config_of(tmp_path: Path, output: str, **options: Any) -> Any:
    return wide_config(
        tmp_path, training__output_dir=str(tmp_path / output), training__eval_steps=3, training__save_steps=2,
        data__eval=0.2, training__max_steps=6, **options,
    )  # fmt: skip


@pytest.mark.gpu(or_cpu=True)
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_a_run_trains_evaluates_resumes_and_generates(tmp_path: Path, options: dict[str, Any]) -> None:
    if options["model__dtype"] == "float16" and not torch.cuda.is_available():
        pytest.skip("float16 trains on CUDA alone")
    wide_config(tmp_path)
    whole = api.train(config_of(tmp_path, "whole", **options))
    assert whole.eval_loss is not None
    with pytest.raises(Interrupted):
        api.train(config_of(tmp_path, "stopped", **options), observer=stop_at(3))
    again = api.train(config_of(tmp_path, "stopped", **options), resume=True)
    ours, theirs = (load_file(run.saved / "adapter_model.safetensors") for run in (again, whole))
    for name, tensor in theirs.items():
        # GPU kernels add in an order that changes from run to run, so bytes may differ; values may not.
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=1e-3)
    answer = api.generate(
        str(again.run_folder), prompt="the order", options=GenerationRequest(max_new_tokens=8)
    ).completion
    assert len(answer.token_ids) <= 8


def test_the_base_is_in_4_bits_with_double_quantization(tmp_path: Path) -> None:
    adapted = build_model(plan_run(wide_config(tmp_path, **METHODS["qlora"])))
    layers = [m for m in adapted.loaded.model.modules() if type(m).__name__ == "Linear4bit"]
    assert layers
    for layer in layers:
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.is_cuda
        assert layer.weight.quant_state.nested
        assert layer.weight.quant_state.quant_type == "nf4"


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2)])
def test_c11_the_variable_length_kernel_is_attention_row_by_row(heads: int, kv_heads: int, window: int | None) -> None:
    lengths = [5, 33, 1, 128]
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, 64), (kv_heads, 64), (kv_heads, 64)]
    exact = [torch.randn(sum(lengths), *shape, generator=generator) for shape in shapes]
    on_gpu = [tensor.to("cuda", torch.bfloat16).requires_grad_() for tensor in exact]
    on_cpu = [tensor.detach().float().cpu().requires_grad_() for tensor in on_gpu]
    ours = attend_rows(*on_gpu, lengths, 0.125, window=window)  # type: ignore[misc]
    expected = attend_rows(*on_cpu, lengths, 0.125, window=window)  # type: ignore[misc]
    weights = torch.randn(expected.shape, generator=generator)
    (ours.float() * weights.cuda()).sum().backward()
    (expected * weights).sum().backward()
    # bfloat16 has 8 bits of mantissa: errors of some tenths of a per cent in norm.
    assert (ours.float().cpu() - expected).norm() < 1e-2 * expected.norm()
    for mine, theirs in zip(on_gpu, on_cpu, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert (mine.grad.float().cpu() - theirs.grad).norm() < 2e-2 * theirs.grad.norm()


@pytest.mark.gpu(or_cpu=True)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_c11_packed_and_padded_losses_agree(tmp_path: Path, model_type: str, method: str) -> None:
    run, _ = tiny_fit(wide_config(tmp_path, model_type=model_type, method=method, model__dtype="bfloat16"))
    run.adapted.model.eval()  # GPT-2 drops weights of attention
    rows, layouts = run.plan.data.train[:6], [BatchLayout(packed, run.plan.layout.pad_id) for packed in (True, False)]
    with torch.no_grad():
        losses = [run.loss(collate_texts(rows, layout).to(run.plan.placement.device)).item() for layout in layouts]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.gpu(or_cpu=True)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("model_type", AS_ON_CUDA)
def test_every_family_trains_in_16_bits(tmp_path: Path, model_type: str, method: str) -> None:
    options: dict[str, Any] = {"model_type": model_type, "method": method, "model__dtype": "bfloat16"}
    train_two_steps(wide_config(tmp_path, task=task_of(model_type), training__max_steps=2, **options))


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_run_says_that_capped_scores_take_all_rows_at_once(tmp_path: Path, method: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with a torch for CUDA")
    config = wide_config(tmp_path, model_type="gemma2", method=method, model__dtype="bfloat16")
    notes = " ".join(build_model(plan_run(config)).notes)
    assert f"{CAPPED} of 3 modules" in notes, notes

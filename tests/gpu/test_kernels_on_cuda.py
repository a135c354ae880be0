"""What training computes in the form for CUDA: the numbers of the plain form, and nothing waits for the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import bitsandbytes.functional as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from loraft.config.sections import QuantizationSection
from loraft.kernels.cuda_rows import efficient_attention, row_ends_of
from loraft.kernels.fused import row_trials, trials
from loraft.kernels.fused.capped_rows import _blocks
from loraft.kernels.fused.forms import fused_norm
from loraft.kernels.fused.fuse import fuse_chosen
from loraft.kernels.low_rank.dora import norms_from_factors
from loraft.kernels.low_rank.lora_linear import patch_lora_linears
from loraft.kernels.packed_attention import attend_rows
from loraft.kernels.rms_norm import cuda_norm, patch_rms_norm, plain_norm
from loraft.merging.quantize_roundtrip import quantize_roundtrip
from loraft.models.registry import FAMILIES
from tests.tiny import tiny_model

pytestmark = pytest.mark.gpu


WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@contextmanager
def no_waits() -> Iterator[None]:
    """Let whatever makes the host wait for the device be an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [64, 2048])
def test_the_norm_is_the_plain_formula(dtype: torch.dtype, hidden: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 33, hidden, device="cuda").to(dtype).requires_grad_()
    weight, given = (torch.randn(shape, device="cuda").to(dtype) for shape in ((hidden,), x.shape))
    with no_waits():
        ours, plain = cuda_norm(x, weight, 1e-6), plain_norm(x, weight, 1e-6)
        gradients = [torch.autograd.grad((out * given).sum(), x)[0] for out in (ours, plain)]
    assert ours.dtype == dtype
    rounding = torch.finfo(dtype).eps  # sums in another order, and what is rounded to the other side by that
    for mine, theirs in ((ours, plain), gradients):
        assert (mine - theirs).double().norm() <= 4 * rounding * theirs.double().norm()


@pytest.mark.parametrize("dtype", trials.TOLERANCE)
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_rows_in_one_kernel_are_those_of_attention_row_by_row(
    key_value_heads: int, window: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    lengths = [130, 1, 64, 33]
    shapes = ((sum(lengths), heads, 32) for heads in (4, key_value_heads, key_value_heads))
    given = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
    ends = row_ends_of(lengths, given[0].device)
    with no_waits():
        ours = efficient_attention(*given, ends, max(lengths), 0.2, window=window)  # type: ignore[misc]
    on_cpu = [tensor.detach().float().cpu().requires_grad_() for tensor in given]
    plain = attend_rows(*on_cpu, lengths, 0.2, window=window)  # type: ignore[misc]
    weights = torch.randn_like(plain)
    mine = [ours, *torch.autograd.grad(ours, given, weights.to(ours))]
    theirs = [plain, *torch.autograd.grad(plain, on_cpu, weights)]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for gpus, cpus in zip(mine, theirs, strict=True):
        # Of a window of one token the scores have no gradient.
        assert (gpus.float().cpu() - cpus).norm() <= tolerance * max(cpus.norm(), 1.0)


@pytest.mark.filterwarnings("ignore")  # of what a compiler would have faster
@pytest.mark.parametrize("dtype", row_trials.TOLERANCE)
@pytest.mark.parametrize("head_size", [64, 256])
def test_capped_scores_of_all_rows_are_those_written_out(head_size: int, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with a torch for CUDA")
    for lengths, window in (*row_trials.TRIED, ([1, 700, 3], 128)):
        assert row_trials.distance("cuda", dtype, head_size, lengths, window) <= row_trials.TOLERANCE[dtype]


def test_blocks_of_capped_scores_are_found_without_a_wait() -> None:
    with no_waits():
        _blocks((130, 1, 64, 33), 40, torch.device("cuda"))


@pytest.mark.parametrize("together", [False, True])
def test_dora_is_that_of_peft_and_waits_for_nothing(together: bool) -> None:
    """With its norms from A and B, and as one function with the base."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=True)
    plain = get_peft_model(tiny_model("llama"), config).to("cuda")
    ours, results = copy.deepcopy(plain), []
    norms_from_factors(ours, "default")
    if together:
        patch_lora_linears(ours, "default", FAMILIES["llama"].same_input)
    ids = torch.randint(3, 300, (2, 9), device="cuda")
    for model in (plain.train(), ours.train()):
        model(input_ids=ids)  # what is chosen or made once
        with no_waits():
            logits = model(input_ids=ids).logits
            logits.square().mean().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    # float32 sums in another order, through three layers to logits of about 4.
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)


@pytest.mark.gpu(or_cpu=True)
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_weight_in_4_bits_is_what_the_cpu_makes_of_it(kind: str, double: bool) -> None:
    """By the code that is stored, and by what merging makes of a base on the CPU.

    A GPU sums the mean of the constants in another order, which is a place of bfloat16 at most. Halfway between two
    codes of FP4, where weights of bfloat16 often are, it may take the other one: bitsandbytes divides faster there.
    """
    weight = torch.randn(192, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    section = QuantizationSection.model_validate({"type": kind, "double_quant": double, "compute_dtype": "bfloat16"})
    there = weight.to("cuda" if torch.cuda.is_available() else "cpu")
    codes, state = bnb.quantize_4bit(there, blocksize=64, quant_type=kind, compress_statistics=double)
    cpus, _ = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
    whole, cpus_whole = bnb.dequantize_4bit(codes, state).cpu(), quantize_roundtrip(weight, section, torch.bfloat16)
    halfway = 0.01 if kind == "fp4" and there.is_cuda else 0.0
    assert (codes.cpu() != cpus).float().mean() <= halfway
    place = torch.finfo(torch.bfloat16).eps if double and there.is_cuda else 0.0
    assert ((whole - cpus_whole).abs() > place * cpus_whole.abs()).float().mean() <= halfway


def test_dropout_keeps_the_mean_of_attention_and_zeroes_weights() -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(256, 2, 32, device="cuda").bfloat16() for _ in range(2))
    value, ends = torch.ones_like(key), row_ends_of([100, 156], key.device)
    out = efficient_attention(query, key, value, ends, 156, 0.2, dropout=0.25).float()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert out.std() > 0.02


@pytest.mark.parametrize("dtype", trials.TOLERANCE)
def test_fused_forms_give_the_numbers_of_the_plain_ones(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with a torch for CUDA")
    for name in trials.PAIRS:
        assert trials.difference(name, "cuda", dtype) <= trials.TOLERANCE[dtype], name
    assert trials.faults("cuda", dtype) == {}


@pytest.mark.parametrize("columns", [128, 4096, 8192, 14336])
def test_a_fused_norm_takes_rows_of_any_length(columns: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with a torch for CUDA")
    torch.manual_seed(0)
    x = torch.randn(65, columns, device="cuda").bfloat16().requires_grad_()
    weight, given = torch.randn(columns, device="cuda").bfloat16(), torch.randn_like(x)
    results = []
    for form in (fused_norm, plain_norm):
        out = form(x, weight, 1e-6, 0.0, rounds=True)
        results.append((out, torch.autograd.grad(out, x, given)[0]))
    for mine, plain in zip(*results, strict=True):
        assert (mine - plain).double().norm() <= 4 * torch.finfo(x.dtype).eps * plain.double().norm()


@pytest.mark.parametrize("model_type", ["llama", "gemma", "qwen3", "phi"])
def test_a_model_of_fused_layers_is_the_model(model_type: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with a torch for CUDA")
    plain = tiny_model(model_type).to("cuda").requires_grad_(False).train()
    ours = copy.deepcopy(plain)
    assert fuse_chosen(ours, "cuda", torch.float32)
    results = []
    for model in (ours, plain):
        torch.manual_seed(0)
        x = torch.randn(2, 9, 32, device="cuda", requires_grad=True)
        logits = model(inputs_embeds=x, use_cache=False).logits
        results.append((logits, torch.autograd.grad(logits.square().mean(), x)[0]))
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_base_and_update_are_pefts(model_type: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=model_type == "gpt2"
    )
    plain = get_peft_model(tiny_model(model_type, **({} if model_type == "llama" else WITHOUT_DROPOUT)), lora)
    plain = plain.to("cuda", dtype).train()
    ours = copy.deepcopy(plain)
    patch_lora_linears(ours, "default", FAMILIES[model_type].same_input)
    patch_rms_norm(ours)
    ids = torch.randint(3, 300, (2, 9), device="cuda")
    results = [outputs_and_gradients(model, ids) for model in (ours, plain)]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-1  # either way bfloat16 rounds to 8 bits, in three layers
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


def outputs_and_gradients(model: nn.Module, ids: Tensor) -> list[Tensor]:
    logits = model(input_ids=ids).logits.float()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return [logits.detach(), *(gradient.float() for gradient in torch.autograd.grad(logits.square().mean(), trained))]


def test_an_adapted_layer_waits_for_nothing() -> None:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 48)), LoraConfig(r=4, target_modules=["0"])).cuda().train()
    patch_lora_linears(model, "default")
    layer, x = model.get_submodule("base_model.model.0"), torch.randn(2, 7, 64, device="cuda", requires_grad=True)
    with no_waits(), torch.autocast("cuda", dtype=torch.bfloat16):
        layer(x).float().square().sum().backward()
    assert x.grad is not None

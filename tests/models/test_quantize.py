"""4 bits: what is quantized, how, and gradients that an evaluation does not touch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from loraft.config.choices import QuantizationType
from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import ModelError
from loraft.merging.quantize_roundtrip import quantize_roundtrip
from loraft.models.auto_model import meta_model
from loraft.models.device import DeviceConfig
from loraft.models.load_model import load_config, load_model
from loraft.models.quantize import (
    compute_dtype,
    in_few_bits,
    quantization_config,
    quantized_modules,
    unpacked,
)
from tests.tiny import mostly_slow, save_tiny

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def on_cpu(dtype: torch.dtype = torch.float32) -> DeviceConfig:
    return DeviceConfig("cpu", dtype, "test", 2**30, 2**30, ())


def section(folder: Path) -> ModelSection:
    return ModelSection(name_or_path=str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_computes_in_the_models_dtype(dtype: torch.dtype) -> None:
    assert compute_dtype(QuantizationSection(), on_cpu(dtype)) == compute_dtype(None, on_cpu(dtype)) == dtype
    config = quantization_config(QuantizationSection(), dtype, torch.nn.Module())
    assert config.load_in_4bit
    assert config.bnb_4bit_compute_dtype == dtype
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    section = QuantizationSection(type="fp4", double_quant=False, compute_dtype="float32")
    named = quantization_config(section, compute_dtype(section, on_cpu(dtype)), torch.nn.Module())
    assert (named.bnb_4bit_quant_type, named.bnb_4bit_use_double_quant) == ("fp4", False)
    assert named.bnb_4bit_compute_dtype == torch.float32


def test_float16_is_for_cuda_alone() -> None:
    with pytest.raises(ModelError, match="float16 does not train on a CPU"):
        compute_dtype(QuantizationSection(compute_dtype="float16"), on_cpu())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_all_linear_modules_but_the_head_are_quantized_as_the_meta_device_foretells(
    tmp_path: Path, model_type: str, kind: QuantizationType
) -> None:

    sizes = SIZES if model_type == "llama" else {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 320}
    if model_type == "opt":
        sizes |= {"word_embed_proj_dim": 64}
    folder = save_tiny(tmp_path, model_type, **sizes)
    loaded = load_model(section(folder), on_cpu(), quantization=QuantizationSection(type=kind))
    quantized = set(in_few_bits(loaded.model))
    assert quantized == set(quantized_modules(meta_model(load_config(section(folder)))))
    assert quantized == set(quantized_modules(loaded.model))
    assert "lm_head" not in quantized
    assert len(quantized) == {"llama": 14, "gpt2": 8, "opt": 12}[model_type]
    assert type(loaded.model.get_output_embeddings()) is nn.Linear


@pytest.mark.parametrize("dtype", mostly_slow([torch.float32, torch.bfloat16], torch.bfloat16))
@pytest.mark.parametrize("kind", mostly_slow(["nf4", "fp4", "int8"], "nf4", "int8"))
def test_c12_gradients_are_bit_equal_with_and_without_an_evaluation_before_them(
    tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    folder = save_tiny(tmp_path, **SIZES)
    quantization = QuantizationSection.model_validate({"type": kind})
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))

    def gradient(*, evaluate_before: bool) -> torch.Tensor:
        loaded = load_model(section(folder), on_cpu(dtype), quantization=quantization)
        if evaluate_before:
            with torch.no_grad():
                loaded.model.eval()(input_ids=ids)
        embedded = loaded.model.get_input_embeddings()(ids).detach().requires_grad_()
        loaded.model.train()(inputs_embeds=embedded, labels=ids).loss.backward()
        assert embedded.grad is not None
        return embedded.grad

    plain = gradient(evaluate_before=False)
    assert plain.abs().max() > 0
    assert torch.equal(plain, gradient(evaluate_before=True))


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("dtype", mostly_slow([torch.float32, torch.bfloat16], torch.bfloat16))
@pytest.mark.parametrize(
    ("kind", "double_quant"), [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False), ("int8", False)]
)
def test_c26_dequantized_is_to_the_bit_what_a_quantized_model_computes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, double_quant: bool, dtype: torch.dtype
) -> None:
    """Whole or in pieces, on rows that blocks end in and on those that they do not."""
    quantization = QuantizationSection.model_validate({"type": kind, "double_quant": double_quant})
    for hidden in (64, 40):
        folder = save_tiny(tmp_path / str(hidden), hidden_size=hidden, intermediate_size=128, num_hidden_layers=1)
        loaded = load_model(section(folder), on_cpu(dtype), quantization=quantization)
        base = load_model(section(folder), on_cpu())
        for piece in (1 << 18, 320):
            monkeypatch.setattr("loraft.kernels.pieces.PIECE", piece)
            for name in quantized_modules(base.model):
                weight = base.model.get_submodule(name).weight
                found = quantize_roundtrip(weight, quantization, dtype)
                assert found.dtype == dtype
                assert torch.equal(found, unpacked(loaded.model.get_submodule(name)))
                assert not torch.equal(found.float(), weight)


def test_c26_products_of_a_dtype_of_their_own_are_part_of_what_is_dequantized() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    rounded = quantize_roundtrip(weight, QuantizationSection(compute_dtype="bfloat16"), torch.float32)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, quantize_roundtrip(weight, QuantizationSection(), torch.float32).bfloat16())


def test_c40_what_t5_keeps_in_float32_is_not_quantized() -> None:
    t5 = meta_model(AutoConfig.for_model("t5", d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4))
    assert {name.rpartition(".")[2] for name in quantized_modules(t5)} == {"q", "k", "v", "o", "wi"}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_c40_a_t5_in_4_bits_is_what_the_meta_device_foretells_and_still_says_what_it_did(
    tmp_path: Path, model_type: str, gated: bool
) -> None:
    """C40: `wo` keeps the model's dtype; the loss is within what 4 bits cost."""
    from bitsandbytes.nn.modules import Linear4bit

    folder = save_tiny(tmp_path, model_type, hidden_size=64, feed_forward_proj="gated-gelu" if gated else "relu")
    whole = load_model(section(folder), on_cpu(), group="encoder_decoder").model
    packed = load_model(
        section(folder), on_cpu(torch.bfloat16), quantization=QuantizationSection(), group="encoder_decoder"
    ).model
    quantized = {name for name, module in packed.named_modules() if isinstance(module, Linear4bit)}
    assert quantized == set(quantized_modules(meta_model(load_config(section(folder), "encoder_decoder"))))
    assert {name.rpartition(".")[2] for name in quantized} == {"q", "k", "v", "o"} | (
        {"wi_0", "wi_1"} if gated else {"wi"}
    )
    kept = {module.weight.dtype for name, module in packed.named_modules() if name.endswith(".wo")}
    assert kept == {torch.bfloat16}
    ids, labels = torch.randint(3, 300, (2, 4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses = [model(input_ids=ids, labels=labels).loss.float() for model in (whole, packed)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0)  # 4 bits of random weights: a few per cent


def test_the_head_of_a_classifier_is_not_quantized(tmp_path: Path) -> None:
    """BERT's pooler begins at random where the base is no classifier, and is trained whole."""
    from bitsandbytes.nn.modules import Linear4bit

    folder = save_tiny(tmp_path, "bert", hidden_size=64)
    labels = ("a", "b")
    loaded = load_model(
        section(folder), on_cpu(), quantization=QuantizationSection(), group="classifier", labels=labels
    ).model
    quantized = {name for name, module in loaded.named_modules() if isinstance(module, Linear4bit)}
    assert quantized == set(quantized_modules(meta_model(load_config(section(folder), "classifier", labels))))
    assert not any("pooler" in name or "classifier" in name for name in quantized)

"""Tiny models whose files hold quantized weights, as each method writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.tiny import save_tiny

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
BY_BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.float16},
    "int8": {"load_in_8bit": True},
}
BLOCK = 32
"""The rows and the columns that share one scale in FP8."""


def save_stored(
    folder: Path, kind: str, model_type: str = "llama", *, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Path:
    """Write a tiny model whose weights are in nf4, fp4, int8, fp8 or by compressed-tensors, the others in `dtype`."""
    save_tiny(folder, model_type, **(sizes or SIZES))
    if kind == "fp8":
        return _in_fp8(folder)
    if kind == "compressed-tensors":
        return _by_compressed_tensors(folder, dtype)
    settings = BitsAndBytesConfig(**BY_BITSANDBYTES[kind])  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=settings)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def _in_fp8(folder: Path) -> Path:
    """As DeepSeek-V3's files are: numbers in float8, and the inverse scale of each block."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "layers" in name and tensors[name].dim() == 2]:
        weight = tensors[name]
        blocks = weight.view(weight.shape[0] // BLOCK, BLOCK, -1, BLOCK)
        scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (blocks / scales[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    named = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    declare(folder, named)
    return folder


def _by_compressed_tensors(folder: Path, dtype: torch.dtype) -> Path:
    """As llm-compressor's files in 4 bits are: whole numbers, and a scale for each 32 inputs of an output."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization import apply_quantization_config as prepare

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=BLOCK)
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    settings = QuantizationConfig(
        config_groups=groups, ignore=["lm_head"], format="pack-quantized", quantization_status="frozen"
    )
    prepare(model, settings)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            largest = module.weight.data.float().view(len(module.weight), -1, BLOCK).abs().amax(-1)
            module.weight_scale.data.copy_(largest / 7)
            module.weight_zero_point.data.zero_()
    compressor = ModelCompressor(quantization_config=settings)
    compressor.compress_model(model)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def declare(folder: Path, settings: object) -> None:
    """Write into a model's config.json how its weights are quantized."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))

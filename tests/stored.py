"""Tiny models whose files hold quantized weights, as each method writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.tiny import save_tiny
from tests.zoo.models import save
from tests.zoo.tiny_configs import tiny_config

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
    """Write a tiny model whose weights are stored as one of many methods does it; the others are in `dtype`."""
    if kind == "mxfp4":
        return _in_mxfp4(folder)
    save_tiny(folder, model_type, **(sizes or SIZES))
    if kind == "fp8":
        return _in_fp8(folder)
    if kind in IN_INT32:
        return _in_int32(folder, *IN_INT32[kind])
    if kind == "compressed-tensors":
        return _by_compressed_tensors(folder, dtype)
    settings = BitsAndBytesConfig(**BY_BITSANDBYTES[kind])  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=settings)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def _in_mxfp4(folder: Path) -> Path:
    """As gpt-oss's files are: the experts' weights in floats of 4 bits, two a byte, and an exponent for each 32."""
    config = tiny_config("gpt_oss", intermediate_size=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save(AutoModelForCausalLM.from_config(config, dtype=torch.float32), folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = (experts, outputs, inputs // BLOCK)
        tensors[f"{name}_blocks"] = torch.randint(256, (*blocks, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(122, 125, blocks, dtype=torch.uint8, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    declare(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    return folder


def _in_fp8(folder: Path) -> Path:
    """As DeepSeek-V3's files are: numbers in float8, and the inverse scale of each block; routers stay as they are."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "layers" in name and tensors[name].dim() == 2 and "gate." not in name]:
        weight = tensors[name]
        blocks = weight.view(weight.shape[0] // BLOCK, BLOCK, -1, BLOCK)
        scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (blocks / scales[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    named = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    declare(folder, named)
    return folder


IN_INT32 = {"gptq": ("gptq", 4), "gptq 8": ("gptq", 8), "gptq v2": ("gptq_v2", 2), "awq": ("awq", 4)}
"""The layout, and the bits of a weight."""


def _in_int32(folder: Path, layout: str, bits: int) -> Path:
    """As AutoGPTQ's and AutoAWQ's files are: numbers side by side in int32s, a scale and a zero for each group."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "layers" in name and tensors[name].dim() == 2 and "gate." not in name]:
        weight, module = tensors.pop(name), name.removesuffix(".weight")
        groups = weight.view(len(weight), -1, BLOCK)
        low, high = groups.amin(-1), groups.amax(-1)
        scales = ((high - low) / (2**bits - 1)).half()
        zeros = (-low / scales).round().clamp(1, 2**bits - 1)
        codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 2**bits - 1).view(weight.shape)
        stored = zeros.T.int() - int(layout == "gptq")
        if layout == "awq":
            packed = [packed_in(each.unflatten(-1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(-2), 4)
                      for each in (codes.T.int(), stored)]  # fmt: skip
        else:
            packed = [packed_in(codes.int(), bits).T, packed_in(stored, bits)]
            tensors[f"{module}.g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // BLOCK
            tensors[f"{module}.bias"] = torch.zeros(len(weight), dtype=torch.float16)  # AutoGPTQ writes it in any case
        parts = zip(("qweight", "qzeros", "scales"), (*packed, scales.T), strict=True)
        tensors |= {f"{module}.{each}": part.contiguous() for each, part in parts}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    named = {"checkpoint_format": layout, "desc_act": False} if layout != "awq" else {"version": "gemm"}
    declare(folder, {"quant_method": layout.partition("_")[0], "bits": bits, "group_size": BLOCK, **named})
    return folder


def packed_in(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers in int32s, the first in the lowest bits: `[…, n]` to `[…, n · bits / 32]`."""
    side_by_side = numbers.long().unflatten(-1, (-1, 32 // bits)) << torch.arange(0, 32, bits)
    return side_by_side.sum(-1).to(torch.uint32).view(torch.int32)


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

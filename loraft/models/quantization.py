"""How a base's frozen weights are stored in 4 bits.

This module knows bitsandbytes: its config, which modules it replaces, and what of it must be kept from breaking
gradients. It refuses to know how a model is loaded. Every linear module is quantized but the head; embeddings and
norms are not linear modules, and stay in the model's dtype, as the QLoRA paper has it.

Source: Dettmers et al. 2023, QLoRA, section 3 (https://arxiv.org/abs/2305.14314).
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from loraft.config.schema import QuantizationSection
from loraft.errors import ModelError
from loraft.models.placement import DTYPES, Placement

__all__ = ["NOT_QUANTIZED", "keep_gradients_exact", "quantization_config", "quantized_modules"]

NOT_QUANTIZED = ("lm_head",)
"""The linear modules, by the last part of their name, that keep the model's dtype."""

# At import bitsandbytes warns that an inference kernel is not installed; `keep_gradients_exact` turns that kernel off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quantization_config(section: QuantizationSection, placement: Placement) -> BitsAndBytesConfig:
    """The config of bitsandbytes, by the names of transformers.

    `compute_dtype: auto` is the model's dtype. Storage is uint8: two weights a byte.

    Raises:
        ModelError: The compute dtype does not train on this device.
    """
    compute = placement.dtype if section.compute_dtype == "auto" else DTYPES[section.compute_dtype]
    if compute == torch.float16 and placement.device == "cpu":
        raise ModelError(
            "float16 does not train on a CPU: its gradients underflow without loss scaling",
            key="quantization.compute_dtype",
            remedy="Use bfloat16 or auto.",
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=section.type,
        bnb_4bit_use_double_quant=section.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


def quantized_modules(model: nn.Module) -> tuple[str, ...]:
    """The full names of the linear modules that 4-bit loading replaces; of a model on the meta device too."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] not in NOT_QUANTIZED
    )


def keep_gradients_exact(model: nn.Module) -> None:
    """Turn off the CPU kernel that repacks 4-bit weights for inference.

    Where the CPU has AVX512-BF16, the first forward in eval mode repacks each weight for a kernel without a backward,
    `.train()` does not undo it, and gradients are wrong from then on without a word.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False

"""What is left of a weight once it has been quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from loraft.config.sections import QuantizationSection
from loraft.kernels.cpu_dequantize import read_blocks_across_rows
from loraft.kernels.packed_experts import BLOCK
from loraft.models.device import DTYPES

PIECE = 1 << 18
"""Weights that are quantized at once: bitsandbytes needs 16 times their memory on the CPU."""


def quantize_roundtrip(
    weight: torch.Tensor,
    section: QuantizationSection,
    dtype: torch.dtype,
    *,
    run: Callable[[Callable[[slice], Any], Iterable[slice]], Iterable[Any]] = map,
) -> torch.Tensor:
    """What is left of a weight once it has been quantized, to the bit as a quantized model computes with it.

    Done piece by piece: only the blocks' constants are held whole, of which double quantization takes the mean.

    Args:
        weight: `[out, in]`, as the base has it; what comes back is so too, in the dtype of the products.
        section: How it is stored.
        dtype: The dtype that the base was loaded in, which it is cast to before it is quantized.
        run: What makes the pieces: `map`, or something like it that has several threads.

    Source: Dettmers et al. 2023, QLoRA, equation 6 (https://arxiv.org/abs/2305.14314); bitsandbytes'
    `functional.quantize_4bit` and `dequantize_4bit`.
    """
    import bitsandbytes.functional as bnb

    read_blocks_across_rows()
    if section.type == "int8":
        return _int8_roundtrip(weight, section, dtype, run)
    rows = max(1, PIECE // weight.shape[1]) if weight.shape[1] % BLOCK == 0 else weight.shape[0]

    def quantize(span: slice) -> tuple[torch.Tensor, Any]:
        piece = weight[span].to(dtype).contiguous()
        codes, state = bnb.quantize_4bit(piece, blocksize=BLOCK, quant_type=section.type)
        return codes, state

    spans = [slice(start, start + rows) for start in range(0, weight.shape[0], rows)]
    packed = list(run(quantize, spans))
    scales = torch.cat([state.absmax for _, state in packed])
    if section.double_quant:  # the constants are kept in 8 bits around their mean
        mean = scales.mean()
        codes, state = bnb.quantize_blockwise(scales - mean, blocksize=256)
        scales = bnb.dequantize_blockwise(codes, state) + mean
    result = torch.empty(weight.shape, dtype=DTYPES.get(section.compute_dtype, dtype))
    blocks = len(packed[0][1].absmax)  # of every piece but the last, which may have fewer

    def restore(span: slice) -> None:
        number = span.start // rows
        codes, state = packed[number]
        state.absmax = scales[number * blocks : (number + 1) * blocks]
        result[span] = bnb.dequantize_4bit(codes, state)

    list(run(restore, spans))
    return result


def _int8_roundtrip(
    weight: torch.Tensor,
    section: QuantizationSection,
    dtype: torch.dtype,
    run: Callable[[Callable[[slice], Any], Iterable[slice]], Iterable[Any]],
) -> torch.Tensor:
    """`quantize_roundtrip` in int8: each row by itself, by way of float16, as bitsandbytes does it."""
    import bitsandbytes.functional as bnb

    from loraft.kernels.int8_linear import dequantized

    rows, result = max(1, PIECE // weight.shape[1]), DTYPES.get(section.compute_dtype, dtype)
    spans = [slice(start, start + rows) for start in range(0, weight.shape[0], rows)]

    def piece(span: slice) -> torch.Tensor:
        codes, scales, _ = bnb.int8_vectorwise_quant(weight[span].to(dtype).half().contiguous())
        return dequantized(codes, scales, result)

    return torch.cat(list(run(piece, spans)))

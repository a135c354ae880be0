"""What weights the quantized tensors of files stand for: each is read from its file, and dequantized, by itself."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.import_utils import is_compressed_tensors_available

from loraft.errors import ModelError
from loraft.kernels.int32_weights import of_awq, of_gptq
from loraft.models.hf_config import written_config
from loraft.models.modules import modules_of
from loraft.models.safetensors_index import (
    TORCH_DTYPES,
    TensorHeader,
    header_of,
    mapped_tensor,
    read_headers,
)
from loraft.models.stored_weights import COMPRESSED, IN_INT32, KEY, ORIGINAL, layout_of, stored_weights

WORDS = {str(dtype).removeprefix("torch."): word for word, dtype in TORCH_DTYPES.items()}
Unpack = Callable[[Mapping[str, Tensor], torch.dtype], Tensor]


@dataclass(frozen=True)
class PackedHeader(TensorHeader):
    """A weight that lies quantized in its file: `dtype` and `shape` are those of the weight that it stands for.

    Attributes:
        kind: What it is stored as.
        parts: Its tensors, by what they are to it: its numbers are `weight`.
        unpack: Makes the weight of these; None where the package for it is not installed.
        transposed: The model has it `[in, out]`, and quantized it is `[out, in]`.
    """

    kind: str
    parts: Mapping[str, TensorHeader] = field(repr=False)
    unpack: Unpack | None = field(repr=False)
    transposed: bool = False

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The weight, as the model has it: dequantized and rounded to `dtype`."""
        assert self.unpack is not None, "a model whose package is missing is refused"
        weight = self.unpack({name: mapped_tensor(part) for name, part in self.parts.items()}, dtype)
        return weight.T.contiguous() if self.transposed else weight


def weight_headers(folder: Path, model: PreTrainedModel) -> dict[str, TensorHeader]:
    """As `read_headers`, with each quantized weight as the one weight that it stands for.

    `model` is on the meta device: what it expects tells the shape of a weight whose tensors do not.

    Raises:
        ModelError: As `read_headers` does; nothing is quantized that is to stay so in memory, or in blocks that
            transformers does not read.
    """
    headers, config = read_headers(folder), written_config(folder / "config.json")
    stored = stored_weights(config)
    if stored is None:
        return headers
    if stored.quantization is not None and all(header.dtype in TORCH_DTYPES for header in headers.values()):
        message = f"it says that the weights are quantized ({stored.words}), and the files hold plain ones"
        raise ModelError(message, where=folder / "config.json", key=KEY, remedy=f"Take {KEY} out of it.")
    named = config.get("dtype") or config.get("torch_dtype")
    usual = WORDS.get(str(named), "BF16")
    transposed = {f"{name}.weight" for name in modules_of(model, Conv1D)}
    if stored.method == COMPRESSED:
        found = _compressed(headers, usual, model, config[KEY])
    elif stored.method in IN_INT32:
        found = _in_int32(headers, stored.method, config[KEY])
    else:
        found = _packed(headers, usual, config[KEY])
    packed = {header.name: header for header in found}
    for name, header in packed.items():
        if any(header_of(own, {name: header}) for own in transposed):
            packed[name] = replace(header, shape=header.shape[::-1], transposed=True)
    within = {part.name for header in packed.values() for part in header.parts.values()}
    within |= {f"{name}_format" for name in packed}  # in which order an int8 weight lies, of which there is one today
    return {name: header for name, header in headers.items() if name not in within} | packed


def _stored_in(
    parts: Mapping[str, TensorHeader], name: str, dtype: str, shape: tuple[int, ...], kind: str, unpack: Unpack | None
) -> PackedHeader:
    """The weight that some tensors stand for, of which the first has its numbers."""
    first = next(iter(parts.values()))
    return PackedHeader(name, dtype, shape, first.file, first.start, first.stop, kind, parts, unpack)


def _below(name: str, headers: Mapping[str, TensorHeader], ordered: Sequence[str]) -> dict[str, TensorHeader]:
    """The tensors whose names go on behind a name, by what follows; `ordered` are all names, sorted."""
    first, last = (bisect_left(ordered, f"{name}{mark}") for mark in "./")  # in ASCII, / comes right behind the dot
    return {each.removeprefix(f"{name}."): headers[each] for each in ordered[first:last]}


def _packed(headers: Mapping[str, TensorHeader], usual: str, settings: Mapping[str, Any]) -> Iterator[PackedHeader]:
    """The weights that bitsandbytes, FP8 or MXFP4 stored; `usual` is the dtype of those that do not say."""
    for name, header in headers.items():
        if header.dtype == "I8" and (scales := headers.get(f"{name.removesuffix('weight')}SCB")):
            yield _stored_in({"weight": header, "scales": scales}, name, usual, header.shape, "int8", _of_int8)
        elif header.dtype.startswith("F8_") and (scales := headers.get(f"{name}_scale_inv")):
            _refuse_uneven_blocks(header, scales, settings.get("weight_block_size") or (1, 1))
            yield _stored_in({"weight": header, "scales": scales}, name, usual, header.shape, "float8_e4m3fn", _of_fp8)
        elif name.endswith("_blocks") and (scales := headers.get(f"{(stem := name.removesuffix('_blocks'))}_scales")):
            experts, outputs, blocks, half = header.shape
            shape = (experts, 2 * half * blocks, outputs)
            yield _stored_in({"blocks": header, "scales": scales}, stem, usual, shape, "mxfp4", _of_mxfp4)
    ordered = sorted(headers)
    for name, state in headers.items():
        weight, mark, kind = name.rpartition(".quant_state.bitsandbytes__")
        if mark and weight in headers:
            told = json.loads(bytes(mapped_tensor(state).tolist()))
            parts = {"weight": headers[weight], **_below(weight, headers, ordered)}
            yield _stored_in(parts, weight, WORDS.get(told["dtype"], usual), tuple(told["shape"]), kind, _of_4_bits)


def _refuse_uneven_blocks(weight: TensorHeader, scales: TensorHeader, block: Sequence[int]) -> None:
    """Refuse a weight whose last block is smaller than the others: transformers takes all for equally large.

    A weight of 192 rows and two blocks of 128 would be read as two of 96, with the wrong scale for a sixth of them.
    """
    sizes = zip(weight.shape[-2:], scales.shape[-2:], block, strict=False)
    if any(size % blocks or (size % each and 1 < blocks == math.ceil(size / each)) for size, blocks, each in sizes):
        shapes = f"its {list(scales.shape)} blocks do not part its {list(weight.shape)} numbers evenly"
        message = f"tensor {weight.name} is in FP8, and {shapes}, which transformers does not read"
        raise ModelError(message, where=weight.file, remedy=ORIGINAL)


def _in_int32(headers: Mapping[str, TensorHeader], method: str, settings: Mapping[str, Any]) -> Iterator[PackedHeader]:
    """The weights that GPTQ or AWQ stored: four tensors a module, or three."""
    less_one = layout_of(method, settings) == "gptq"
    unpack: Unpack = partial(of_gptq, zeros_less_one=less_one) if method == "gptq" else of_awq
    names = ("qweight", "qzeros", "scales", "g_idx") if method == "gptq" else ("qweight", "qzeros", "scales")
    for name, first in headers.items():
        module, leaf = name.rpartition(".")[::2]
        parts = {each: headers[f"{module}.{each}"] for each in names if f"{module}.{each}" in headers}
        if leaf == "qweight" and len(parts) == len(names):
            inputs = parts["g_idx"].shape[0] if method == "gptq" else first.shape[0]
            bits = 32 * first.shape[0] // inputs if method == "gptq" else 4
            shape, scales = (parts["scales"].shape[1], inputs), parts["scales"].dtype
            yield _stored_in(parts, f"{module}.weight", scales, shape, f"int{bits}", unpack)


def _compressed(
    headers: Mapping[str, TensorHeader], usual: str, model: PreTrainedModel, settings: Mapping[str, Any]
) -> Iterator[PackedHeader]:
    """The weights that compressed-tensors stored, in one of its many formats: each module's tensors but its bias."""
    groups = settings.get("config_groups") or {}
    kinds = [group.get("weights") or {} for group in groups.values()] or [{}]
    kind = f"{kinds[0].get('type', 'int')}{kinds[0].get('num_bits', 8)}"
    unpack = partial(_of_compressed, settings) if is_compressed_tensors_available() else None
    ordered = sorted(headers)
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        parts = _below(module, headers, ordered)
        parts.pop("bias", None)
        if leaf == "weight" and "weight_scale" in parts:
            yield _stored_in(parts, name, usual, tuple(tensor.shape), kind, unpack)


def _of_int8(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    from loraft.kernels.linear_weights import dequantized

    return dequantized(parts["weight"], parts["scales"], dtype)


def _of_4_bits(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    others = {name: part for name, part in parts.items() if name != "weight"}
    weight: Tensor = dequantize_4bit(parts["weight"], QuantState.from_dict(others, device=torch.device("cpu")))
    return weight.to(dtype)


def _of_fp8(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    scales = parts["scales"]
    exact = scales if scales.dtype == torch.uint8 else scales.float()
    made = Fp8Dequantize(None).convert({"weight": parts["weight"], "weight_scale_inv": exact})  # type: ignore[no-untyped-call]
    weight: Any = made["weight"]
    return cast("Tensor", weight.to(dtype))


def _of_mxfp4(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(parts["blocks"], parts["scales"], dtype=dtype)


def _of_compressed(settings: Mapping[str, Any], parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """As transformers' own `CompressedTensorsDequantize` does it while loading."""
    from compressed_tensors.compressors import BaseCompressor
    from transformers.integrations.compressed_tensors import get_dense_scheme

    quantizer: Any = AutoHfQuantizer.from_config({**settings, "dequantize": True}, pre_quantized=True)
    config = quantizer.compressor.quantization_config
    scheme: Any = get_dense_scheme(config)  # type: ignore[no-untyped-call]
    compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
    return cast("Tensor", compressor.decompress(dict(parts), scheme)["weight"].to(dtype))

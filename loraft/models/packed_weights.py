"""What of a model its files hold, and what weights quantized tensors stand for.

Each weight is read from its file, and dequantized, by itself.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.import_utils import is_compressed_tensors_available

from loraft.errors import ModelError
from loraft.kernels.int32_weights import of_awq, of_gptq
from loraft.models.auto_model import meta_model
from loraft.models.hf_config import class_names, in_order, written_config
from loraft.models.modules import is_within
from loraft.models.probe import spec_of
from loraft.models.safetensors_index import (
    TORCH_DTYPES,
    Origin,
    TensorHeader,
    check_weights,
    differ,
    expected_tensors,
    header_of,
    holds_weights,
    mapped_tensor,
    read_headers,
)
from loraft.models.stored_weights import COMPRESSED, IN_INT32, KEY, ORIGINAL, layout_of, stored_weights
from loraft.models.weight_names import as_model_names

WORDS = {str(dtype).removeprefix("torch."): word for word, dtype in TORCH_DTYPES.items()}
BESIDE_PACKED = (".bias", ".scales")
"""What quantizers write beside each weight, zero where the model has no place for it."""
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
        raise ModelError(message, where=str(folder / "config.json"), key=KEY, remedy=f"Take {KEY} out of it.")
    named = config.get("dtype") or config.get("torch_dtype")
    usual = WORDS.get(str(named), "BF16")
    transposed = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, Conv1D)}
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
    plain = {name: header for name, header in headers.items() if name not in within and not _is_format(name, packed)}
    return {**plain, **packed}


def skeleton_of(config: PreTrainedConfig, folder: Path) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model of a config on the meta device, as far as they are there with what a folder's files hold; and notes.

    transformers leaves apart what a config ties where the files hold other numbers for each. The config then says so
    too: whatever asks it later, growing embeddings or a server, would tie them after all.

    Raises:
        ModelError: The config's sizes make no model, or the files cannot be read.
    """
    model = meta_model(config)
    tied = model.all_tied_weights_keys
    if not tied or not holds_weights(folder):
        return model, ()
    found = as_model_names(model, weight_headers(folder, model))
    if not all(name in found and of in found and _are_apart(found[name], found[of]) for name, of in tied.items()):
        return model, ()
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    both = " and ".join(next(iter(tied.items())))
    note = f"config.json ties {both}, and the files hold other numbers for each: both are used as they are"
    return meta_model(config), (note,)


def _are_apart(one: Origin, other: Origin) -> bool:
    if len({isinstance(part, PackedHeader) for part in (*one.parts, *other.parts)}) > 1:
        return True
    return any(differ(*parts) for parts in zip(one.parts, other.parts, strict=True))


@dataclass(frozen=True)
class ModelTensors:
    """What of a model its files hold.

    Attributes:
        held: The tensors that they hold, with their shapes.
        new: The modules of a classifier's head that are new: the files lack them, or have them for other classes.
        unused: The weights in the files that have no place in the model, and are not of a kind that it always leaves.
    """

    held: Mapping[str, tuple[int, ...]]
    new: tuple[str, ...]
    unused: tuple[TensorHeader, ...]


def require_tensors(folder: Path, skeleton: PreTrainedModel, labels: Sequence[str]) -> ModelTensors:
    """Refuse files that lack something of a model, the head of a classifier apart.

    The module that decides between the classes is new too where the files have it for other classes: it would begin
    with what is right for others. Of two classes that have transformers' own names, `LABEL_0` and `LABEL_1`, a
    config.json says nothing.

    Raises:
        ModelError: As `check_weights` does.
    """
    headers = weight_headers(folder, skeleton)
    expected, found = expected_tensors(skeleton), as_model_names(skeleton, headers)
    new: tuple[str, ...] = ()
    if labels:
        head = spec_of(skeleton.config, "classifier").classifier
        named = written_config(folder / "config.json").get("id2label")
        known = in_order(named) if isinstance(named, Mapping) else class_names(PreTrainedConfig())
        absent = [name for name in expected if name not in found]
        new = tuple(
            module
            for module in head
            if (module == head[-1] and known != tuple(labels)) or any(is_within(name, module) for name in absent)
        )
    held = {name: shape for name, shape in expected.items() if not is_within(name, *new)}
    check_weights(folder, held, found)
    placed, ignored = _placed(found), skeleton._keys_to_ignore_on_load_unexpected or ()
    rest = (header for name, header in headers.items() if name not in placed and header.dtype in TORCH_DTYPES)
    unused = tuple(header for header in rest if not any(re.search(pattern, header.name) for pattern in ignored))
    if any(isinstance(header, PackedHeader) for header in headers.values()):
        unused = tuple(header for header in unused if not header.name.endswith(BESIDE_PACKED))
    return ModelTensors(held, new, unused)


def _placed(found: Mapping[str, Origin]) -> set[str]:
    """The tensors of files that a model has a place for."""
    return {part.name for origin in found.values() for part in origin.parts}


def packed_modules(folder: Path, model: PreTrainedModel) -> tuple[str, ...]:
    """The modules of a model whose weights lie quantized in its files; `model` is on the meta device.

    Raises:
        ModelError: As `read_headers` does.
    """
    headers = weight_headers(folder, model)
    named = (name for name, _ in model.named_modules())
    return tuple(name for name in named if isinstance(header_of(f"{name}.weight", headers), PackedHeader))


def _is_format(name: str, packed: Collection[str]) -> bool:
    """Whether a tensor only says in which order an int8 weight lies, of which there is one today."""
    return name.endswith(".weight_format") and name.removesuffix("_format") in packed


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
        raise ModelError(message, where=str(weight.file), remedy=ORIGINAL)


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


def unpacked_tensors(folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a folder by its name there, those that are quantized as the weights that they stand for.

    Raises:
        ModelError: One is of no use to the model, and yet not zero: leaving it out would make another model.
    """
    headers, tensors = weight_headers(folder, model), {}
    placed = _placed(as_model_names(model, headers))
    for name, header in headers.items():
        tensor = header.tensor(dtype)
        useless = name not in placed and name.endswith(BESIDE_PACKED)
        if useless and bool(tensor.any()):
            message = f"tensor {name} has no place in the model, and is not zero"
            raise ModelError(message, where=str(header.file), remedy=ORIGINAL)
        if not useless:
            tensors[name] = tensor
    return tensors


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

"""Which tensor of a model becomes which of a GGUF file, in which type, and what is done to its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from loraft.errors import ConfigError, ModelError, NonFiniteError
from loraft.exporting.gguf_families import GgufFamily
from loraft.models.safetensors_index import Slot

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

OutType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""The types that weights can be written in: those that the package gguf quantizes to."""
SIXTEEN_BITS: Mapping[str, torch.dtype] = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
HALF = torch.finfo(torch.float16).max
LARGEST: Mapping[str, float] = {
    "f16": HALF, "q8_0": 127 * HALF, "q5_1": HALF, "q5_0": 16 * HALF, "q4_1": HALF, "q4_0": 8 * HALF,
}  # fmt: skip
"""What a type can hold: the scale of a block is in f16, and so is the smallest number of a block of q5_1 and q4_1."""
ENDS = ("token_embd.weight", "output.weight")
"""The tables of the vocabulary, which in 4 and 5 bits would cost the most: they are written in 8."""
IN_8_BITS: OutType = "q8_0"
NUMBERS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class GgufTensor:
    """A tensor that a GGUF file has a place for.

    Attributes:
        shape: As torch has it: the numbers of a row last.
        kind: What its numbers are written in.
        offset: What is added to each number.
        heads: Whose rows are put in pairs: how many heads they are of; None leaves them in order.
    """

    name: str
    shape: tuple[int, ...]
    kind: OutType
    offset: float = 0.0
    heads: int | None = None

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[ggml_type(self.kind)]
        return prod(self.shape) // block * size

    def encoded(self, pieces: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
        """Its numbers as the file has them, some at a time; `pieces` are in order and in float32.

        Raises:
            NonFiniteError: A number is NaN, infinite or too large for the type.
        """
        if self.heads is not None:
            pieces = [in_pairs(torch.cat([piece.reshape(-1) for piece in pieces]).view(self.shape), self.heads)]
        for piece in pieces:
            for part in piece.reshape(-1).split(NUMBERS_AT_ONCE):  # type: ignore[no-untyped-call]
                yield self._encoded(part + self.offset if self.offset else part)

    def _encoded(self, part: Tensor) -> bytes | memoryview:
        largest = float(torch.linalg.vector_norm(part, math.inf))
        if not math.isfinite(largest):
            raise NonFiniteError(f"{self.name} holds NaN or infinity", remedy="Copy or download the weights again.")
        if largest > LARGEST.get(self.kind, math.inf):
            message = f"{self.name} has numbers that are too large for {self.kind}, up to {largest:.3g}"
            raise NonFiniteError(message, remedy="`outtype='bf16'` holds them.")
        dtype = SIXTEEN_BITS.get(self.kind)
        if dtype is None:
            from gguf.quants import quantize

            return quantize(part.numpy().reshape(1, -1), ggml_type(self.kind)).tobytes()
        return part.to(dtype).contiguous().view(torch.uint8).numpy().data


def ggml_type(kind: OutType) -> GGMLQuantizationType:
    """Ggml's own name of a type.

    Raises:
        ConfigError: There is no such type here.
    """
    from gguf import GGMLQuantizationType

    if kind not in (known := get_args(OutType)):
        remedy = f"It is one of {', '.join(known)}; llama.cpp's llama-quantize makes others of a file in f16."
        raise ConfigError(f"{kind!r} is no type that loraft writes", parameter="outtype", remedy=remedy)
    return GGMLQuantizationType[kind.upper()]


def in_pairs(rows: Tensor, heads: int) -> Tensor:
    """The rows `[heads · d, …]` of q or k so that rope turns neighbours: those of both halves of a head in turn."""
    return rows.view(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


class TensorNames:
    """What the tensors of a model are called in the files of a family, by the package gguf."""

    def __init__(self, family: GgufFamily, layers: int, where: str) -> None:
        """Read the package's map for a model of so many layers, which errors call `where`."""
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        architecture: Any = next(each for each in MODEL_ARCH if MODEL_ARCH_NAMES.get(each) == family.architecture)
        self._map, self._family, self._where = get_tensor_name_map(architecture, layers), family, where

    def of(self, name: str) -> str:
        """The name of a tensor in the file.

        Raises:
            ModelError: The family has no place for it.
        """
        found: str | None = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None or (found.endswith(".bias") and found.split(".")[-2] not in self._family.biases):
            raise self.no_place(name)
        return found

    def no_place(self, name: str) -> ModelError:
        """A tensor that the file would have to leave out."""
        message = f"the tensor {name} has no place in a GGUF file of llama.cpp's {self._family.architecture}"
        remedy = "Use the model with `loraft.generate`, or with a server that runs folders of transformers."
        return ModelError(message, where=self._where, remedy=remedy)


def planned(slot: Slot, name: str, outtype: OutType, family: GgufFamily, config: Any) -> GgufTensor:
    """How a tensor of a model is written under its `name` in the file.

    Norms and biases stay in float32; rows that no block fits into are written in f16.
    """
    is_norm = slot.name.endswith("norm.weight")
    offset = family.norm_offset if is_norm else 0.0
    heads = None
    if family.rotates_pairs and any(f".{part}." in slot.name for part in ("q_proj", "k_proj")):
        heads = config.num_attention_heads if ".q_proj." in slot.name else config.num_key_value_heads
    return GgufTensor(name, slot.shape, _kind(slot, name, outtype), offset, heads)


def _kind(slot: Slot, name: str, outtype: OutType) -> OutType:
    from gguf import GGML_QUANT_SIZES

    if len(slot.shape) < 2:
        return "f32"
    kind = IN_8_BITS if name in ENDS and outtype.startswith(("q4", "q5")) else outtype
    return "f16" if slot.shape[-1] % GGML_QUANT_SIZES[ggml_type(kind)][0] else kind

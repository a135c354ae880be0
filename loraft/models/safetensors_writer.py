"""Safetensors files written tensor by tensor, so that no file is ever held in memory.

Reading is in `safetensors_index`.

Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import torch

from loraft.models.safetensors_index import INDEX

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The floating dtypes by the words that safetensors has for them."""
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
ALIGNED_BYTES = 8


@dataclass(frozen=True)
class Slot:
    """A tensor that a file has a place for.

    Attributes:
        name: Its name in the file.
        dtype: As safetensors writes it: F32, BF16, …
        shape: Its sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def in_order(slots: Iterable[Slot]) -> list[Slot]:
    """The slots as a file has them: those of wide numbers first, so that every tensor begins where its dtype may."""
    return sorted(slots, key=lambda slot: -ITEM_BYTES[slot.dtype])


def write_shard(file: Path, slots: Sequence[Slot], pieces: Callable[[Slot], Iterable[torch.Tensor]]) -> None:
    """Write one file.

    Args:
        file: Where to.
        slots: What it holds, in the order of `in_order`.
        pieces: The numbers of a slot, in order and in its dtype; each piece is written before the next is asked for.

    Raises:
        ValueError: The pieces of a slot are not as many bytes as it has room for.
    """
    with file.open("wb", buffering=0) as stream:
        header = _header(slots)
        _write(stream, memoryview(len(header).to_bytes(8, "little") + header))
        for slot in slots:
            written = sum(_write(stream, _bytes_of(piece)) for piece in pieces(slot))
            if written != slot.num_bytes:
                raise ValueError(f"{slot.name} has room for {slot.num_bytes:,} bytes, and {written:,} were given")


def write_index(folder: Path, places: Mapping[str, str], total_bytes: int) -> None:
    """Write the list of which file holds which tensor, for a folder with several files."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(slots: Sequence[Slot]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for slot in slots:
        stop = start + slot.num_bytes
        described[slot.name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": (start, stop)}
        start = stop
    raw = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    return raw + b" " * (-len(raw) % ALIGNED_BYTES)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(stream: FileIO, view: memoryview) -> int:
    """Write all of it: the system may take less at once."""
    size = left = len(view)
    while left:
        left -= stream.write(view[size - left :])
    return size

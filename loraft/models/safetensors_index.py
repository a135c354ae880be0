"""The weights of a folder, known from the headers of its safetensors files.

Files that are cut short, shards that are absent and tensors that are missing are found without reading a weight.
Nothing but safetensors is read: pickled weights can run code when they are opened, and no function here opens one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from loraft.errors import ModelError, Problem
from loraft.figures import listed

if TYPE_CHECKING:  # a process that opens pickles has no need of transformers
    from transformers import PreTrainedModel

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
LONGEST_HEADER = 100_000_000  # the limit of the safetensors library, in bytes
LISTED = 8
"""The most problems that an error has."""
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The floating dtypes by the words that safetensors has for them."""
WHOLE_NUMBERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "U8": torch.uint8, "BOOL": torch.bool}
"""The dtypes of whole numbers that models have, likewise."""
DTYPES = TORCH_DTYPES | WHOLE_NUMBERS | {
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""The dtypes that are read."""
WORDS = {dtype: word for word, dtype in DTYPES.items()}
"""The words of dtypes."""
ALIGNED_BYTES = 8

RENAMED = {"lm_head.weight": "embed_out.weight"}
"""Tensors under the names that older files give them (GPT-NeoX's head)."""


@dataclass(frozen=True)
class Slot:
    """A tensor that a file has a place for; its dtype as safetensors writes it, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class TensorHeader(Slot):
    """A tensor as its file's header describes it: from the byte `start` of the file to the one before `stop`."""

    file: Path
    start: int
    stop: int

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The tensor, in its own dtype; what lies quantized in the file is dequantized, and rounded to `dtype`."""
        return mapped_tensor(self)


@dataclass(frozen=True)
class Origin:
    """What a tensor of a model is in its files.

    Attributes:
        parts: The tensors that it is made of.
        converted: They are computed with: stacked, joined, transposed. Otherwise the one part is the tensor itself.
    """

    parts: tuple[TensorHeader, ...]
    converted: bool


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the folder by name, from the headers alone.

    Raises:
        ModelError: No weights, pickled weights only, a shard that is absent, two that hold the same tensor otherwise,
            a file that is cut short or is no safetensors file; with the file, and the bytes it has and should have.
    """
    if (folder / SINGLE).is_file():
        return headers_of(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    index = weight_map(folder / INDEX)
    headers: dict[str, TensorHeader] = {}
    for shard in sorted(set(index.values())):
        if not (folder / shard).is_file():
            message = "the file is missing, and the index lists it"
            raise ModelError(message, where=folder / shard, remedy=FETCH_AGAIN)
        found = headers_of(folder / shard)
        if twice := [name for name in headers.keys() & found.keys() if differ(headers[name], found[name])]:
            message = f"{listed(sorted(twice))} stands in another file of the index too, with other numbers"
            raise ModelError(message, where=folder / shard, remedy=FETCH_AGAIN)
        headers |= found
    if absent := sorted(set(index) - set(headers)):
        raise ModelError(f"no file holds {listed(absent)}, which the index lists", where=folder / INDEX)
    return headers


def holds_weights(folder: Path) -> bool:
    """Whether each file of a folder's weights is there, as far as their names tell."""
    if (folder / SINGLE).is_file():
        return True
    index = folder / INDEX
    return index.is_file() and all((folder / shard).is_file() for shard in set(weight_map(index).values()))


def differ(one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two tensors are not the same, number for number."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return True
    return not torch.equal(*(mapped_tensor(each).reshape(-1).view(torch.uint8) for each in (one, other)))


FETCH_AGAIN = "Copy or download the model again."


def _no_weights(folder: Path) -> ModelError:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if not pickled:
        return ModelError(f"the folder has no weights: neither {SINGLE} nor {INDEX}", where=folder)
    return ModelError(
        f"the weights are pickled ({listed(pickled)}), and loraft opens safetensors only: a pickle can run code",
        where=folder,
        remedy=f"Make safetensors of them, in a process that runs none: `loraft.convert({str(folder)!r}, 'OUT')`.",
    )


def weight_map(index: Path, ends: str = ".safetensors") -> dict[str, str]:
    """The file of each tensor, as an index lists them; the files lie beside it, and their names end in `ends`.

    Raises:
        ModelError: It cannot be read, or lists other files.
    """
    try:
        held = json.loads(index.read_bytes())["weight_map"]
        shards = {str(name): str(shard) for name, shard in held.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"is not an index of {ends} files", where=index, remedy=FETCH_AGAIN) from None
    if strange := sorted({shard for shard in shards.values() if not re.fullmatch(rf"[\w.-]+{re.escape(ends)}", shard)}):
        raise ModelError(f"lists files that are not {ends} files beside it: {listed(strange)}", where=index)
    return shards


def headers_of(file: Path) -> dict[str, TensorHeader]:
    """Every tensor of one file by name, from its header alone.

    Raises:
        ModelError: It is cut short, or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > LONGEST_HEADER:
            raise ModelError(f"is not a safetensors file ({size:,} bytes)", where=file, remedy=FETCH_AGAIN)
        raw = stream.read(length)
    if len(raw) < length:
        raise _cut_short(file, size, f"more than {8 + length:,}")
    try:
        described = json.loads(raw)
        headers = {
            name: TensorHeader(name, entry["dtype"], tuple(entry["shape"]), file, *_span(entry, 8 + length))
            for name, entry in described.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError("has no safetensors header that can be read", where=file, remedy=FETCH_AGAIN) from None
    stop = max((header.stop for header in headers.values()), default=8 + length)
    if size < stop:
        raise _cut_short(file, size, f"{stop:,}")
    return headers


def _span(entry: Mapping[str, list[int]], offset: int) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop:
        raise ValueError("offsets out of order")
    return offset + start, offset + stop


def _cut_short(file: Path, size: int, whole: str) -> ModelError:
    return ModelError(f"is cut short: it has {size:,} of {whole} bytes", where=file, remedy=FETCH_AGAIN)


def expected_tensors(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The tensors that a file must hold for this model (on the meta device will do): name to shape.

    Left out are those tied to another, those that the architecture may compute for itself, and tables of whole numbers.
    """
    tied = set(model.all_tied_weights_keys)
    optional = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in tied and tensor.is_floating_point() and not any(pattern.search(name) for pattern in optional)
    }


def check_weights(folder: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Origin]) -> None:
    """Compare what was found in the folder with what a model expects, without reading a weight.

    A tensor that is computed from others has no shape to compare before it is made.

    Raises:
        ModelError: With every problem: tensors that are missing, by name; other shapes; dtypes that are not floating;
            an index that transformers does not read.
    """
    problems = list(_unread_index(folder / INDEX))
    if missing := [name for name in expected if name not in found]:
        message = f"{len(missing)} of {len(expected)} tensors are missing: {listed(missing)}"
        remedy = "Training would start from random numbers in their place. " + FETCH_AGAIN
        problems.append(Problem(message, str(folder), remedy=remedy))
    for name, origin in found.items():
        for header in origin.parts if name in expected else ():
            problems += _misfits(name, header, None if origin.converted else expected[name])
    if problems:
        raise ModelError.several(problems[:LISTED])


def _unread_index(index: Path) -> Iterator[Problem]:
    """What is wrong with the list of a model's files, of which transformers reads more than where each tensor is."""
    if not (index.parent / SINGLE).is_file() and not isinstance(json.loads(index.read_bytes()).get("metadata"), dict):
        remedy = 'Write "metadata": {} into it, beside "weight_map".'
        yield Problem('has no "metadata", without which transformers does not read it', str(index), remedy=remedy)


def _misfits(name: str, header: TensorHeader, shape: tuple[int, ...] | None) -> Iterator[Problem]:
    """What is wrong with a tensor of a file; a shape of None is not known before the tensor is made."""
    if shape is not None and header.shape != shape:
        shapes = f"{list(header.shape)}, and config.json makes it {list(shape)}"
        yield Problem(f"tensor {name} is {shapes}", where=str(header.file))
    elif header.dtype not in TORCH_DTYPES:
        remedy = "Take the unquantized model; method: qlora quantizes it while loading."
        yield Problem(f"tensor {name} holds {header.dtype} numbers", str(header.file), remedy=remedy)


def header_of(name: str, headers: Mapping[str, TensorHeader]) -> TensorHeader | None:
    """The tensor that a model calls `name`, which its file may call otherwise; None where it has none."""
    candidates = (name, name.partition(".")[2], RENAMED.get(name, name))
    return next((headers[candidate] for candidate in candidates if candidate in headers), None)


def fingerprint(folder: Path) -> str:
    """A sha256 that tells two bases of the same shape apart: `sha256:…`.

    Over each tensor in the order of names: name, dtype, shape, and its first and last 4 KiB. How the tensors are
    spread over files does not matter.
    """
    digest = hashlib.sha256()
    for name, header in sorted(read_headers(folder).items()):
        digest.update(json.dumps([name, header.dtype, header.shape]).encode())
        with header.file.open("rb") as stream:
            for start in (header.start, max(header.start, header.stop - 4096)):
                stream.seek(start)
                digest.update(stream.read(min(4096, header.stop - start)))
    return f"sha256:{digest.hexdigest()}"


def mapped_tensor(header: TensorHeader) -> Tensor:
    """A tensor of the base, which stays in its file; what is read of it leaves memory with it.

    The file is opened for each: as long as it is, all that was ever read of it counts as this process's memory.
    """
    with safe_open(header.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(header.name)
    return tensor


def slot_of(name: str, tensor: Tensor) -> Slot:
    """The place for a tensor of that name."""
    return Slot(name, WORDS[tensor.dtype], tuple(tensor.shape))


def in_order(slots: Iterable[Slot]) -> list[Slot]:
    """The slots as a file has them: those of wide numbers first, so that every tensor begins where its dtype may."""
    return sorted(slots, key=lambda slot: -DTYPES[slot.dtype].itemsize)


def write_shard(
    file: Path,
    slots: Sequence[Slot],
    pieces: Callable[[Slot], Iterable[torch.Tensor]],
    besides: Mapping[str, str] | None = None,
) -> None:
    """Write one file with `slots`, in the order of `in_order`, and what its header says `besides`.

    `pieces` gives the numbers of a slot, in order and in its dtype; each is written before the next is asked for.

    Raises:
        ValueError: The pieces of a slot are not as many bytes as it has room for.
    """
    with file.open("wb", buffering=0) as stream:
        header = _header(slots, besides or {})
        _write(stream, memoryview(len(header).to_bytes(8, "little") + header))
        for slot in slots:
            written = sum(_write(stream, raw_bytes(piece)) for piece in pieces(slot))
            if written != slot.num_bytes:
                raise ValueError(f"{slot.name} has room for {slot.num_bytes:,} bytes, and {written:,} were given")


def write_index(folder: Path, places: Mapping[str, str], total_bytes: int) -> None:
    """Write the list of which file holds which tensor, for a folder with several files."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(slots: Sequence[Slot], besides: Mapping[str, str]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt", **besides}}
    start = 0
    for slot in slots:
        stop = start + slot.num_bytes
        described[slot.name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": (start, stop)}
        start = stop
    raw = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    return raw + b" " * (-len(raw) % ALIGNED_BYTES)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers of a tensor as a file has them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(stream: FileIO, view: memoryview) -> int:
    """Write all of it: the system may take less at once."""
    size = left = len(view)
    while left:
        left -= stream.write(view[size - left :])
    return size

"""Tensors in files of which each rank writes its own, and reads from all what it has to have.

A file holds rows of tensors, and its header says with which they begin: as torch's distributed checkpoint
(`HuggingFaceStorageWriter`) lays them, which can read them too. A file of whole tensors is one whose rows begin at 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from loraft.distributed.ranks import Ranks
from loraft.distributed.sharding import held_rows, own_part, with_own_part
from loraft.errors import AdapterError
from loraft.io.atomic import flush
from loraft.models.safetensors_index import Slot, in_order, slot_of, write_shard

SHARDING = "DCP_SHARDING_INFO"
"""Where a header says with which row a tensor's begin, as torch has it: `{tensor: {saved_offsets: [row, 0, …]}}`."""
OFFSETS = "saved_offsets"


def write_parts(folder: Path, kind: str, tensors: Mapping[str, Tensor], ranks: Ranks) -> list[Path]:
    """Write this rank's rows of tensors into a file of its own: none where it has none that another does not have.

    Args:
        folder: Where the files of all ranks lie.
        kind: What their names begin with.
        tensors: By name; of those that every rank has whole, rank 0 writes them.
        ranks: Who writes.

    Returns:
        The file, which is on disk.
    """
    first = {name: held_rows(tensor).start for name, tensor in tensors.items() if _writes(tensor, ranks)}
    if not first:
        return []
    file = folder / f"{kind}-{ranks.rank + 1:05d}-of-{ranks.world:05d}.safetensors"
    slots = in_order(slot_of(name, own_part(tensors[name])) for name in first)
    offsets = {name: {OFFSETS: [row, *[0] * tensors[name].dim()][: tensors[name].dim()]} for name, row in first.items()}

    def rows(slot: Slot) -> Iterator[Tensor]:
        yield own_part(tensors[slot.name].detach()).cpu()

    write_shard(file, slots, rows, {SHARDING: json.dumps(offsets)})
    flush(file)
    return [file]


def _writes(tensor: Tensor, ranks: Ranks) -> bool:
    """Whether it is this rank that writes its rows of a tensor: of several copies one is written."""
    held = held_rows(tensor)
    return (held.of_first_copy if held.parted else ranks.main) and own_part(tensor).numel() > 0


class _Rows(NamedTuple):
    """Rows of a tensor in a file, from row `start` of the tensor to the one before `stop`."""

    file: Path
    start: int
    stop: int


class PartFiles:
    """The tensors of files, whole or in parts, from which a rank reads its rows.

    Raises:
        AdapterError: A file cannot be read.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._found: dict[str, list[_Rows]] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt") as opened:
                    told = json.loads((opened.metadata() or {}).get(SHARDING, "{}"))
                    for name in opened.keys():  # noqa: SIM118  # it is no mapping
                        shape = opened.get_slice(name).get_shape()
                        start = told[name][OFFSETS][0] if shape and name in told else 0
                        self._found.setdefault(name, []).append(_Rows(file, start, start + (shape[0] if shape else 1)))
            except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
                raise AdapterError(f"it cannot be read: {error}", where=file) from None

    @property
    def names(self) -> frozenset[str]:
        """The names of the tensors."""
        return frozenset(self._found)

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """A tensor in parts as `like` is, of which this rank reads its rows alone; else whole, in main memory.

        Raises:
            AdapterError: The files lack rows of it.
        """
        parts = sorted(self._found[name], key=lambda rows: rows.start)
        held = None if like is None else held_rows(like)
        if like is None or held is None or not held.parted or parts[-1].stop != like.shape[0]:
            return self._rows(name, parts, 0, parts[-1].stop).clone()
        own = self._rows(name, parts, held.start, held.stop) if held.stop > held.start else None
        return with_own_part(like, own)

    def _rows(self, name: str, parts: list[_Rows], start: int, stop: int) -> Tensor:
        found, at = [], start
        for part in parts:
            if part.start <= at < min(part.stop, stop):
                with safe_open(part.file, framework="pt") as opened:
                    rows = opened.get_slice(name)
                    scalar = not rows.get_shape()
                    until = min(stop, part.stop)
                    found.append(opened.get_tensor(name) if scalar else rows[at - part.start : until - part.start])
                at = until
        if at < stop:
            raise AdapterError(f"it lacks rows of {name} from the number {at} on", where=parts[0].file.parent)
        return found[0] if len(found) == 1 else torch.cat(found)


def restore_rows(trainable: Mapping[str, nn.Parameter], files: PartFiles) -> None:
    """Give parameters the values that files have for them, each rank its own rows.

    Raises:
        AdapterError: The files lack a tensor, or have it in another shape.
    """
    for name, weight in trainable.items():
        value = files.read(name, weight)
        if value.shape != weight.shape:
            raise AdapterError(f"{name} is {list(value.shape)}, and the model has {list(weight.shape)}")
        own_part(weight.data).copy_(own_part(value))

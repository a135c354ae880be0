"""A GGUF file, written piece by piece: no more of a model is held in memory than one tensor that is reordered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loraft.errors import RunFolderError
from loraft.events import Observer, Progress
from loraft.exporting.gguf_settings import Value
from loraft.exporting.gguf_tensors import GgufTensor, ggml_type
from loraft.io.atomic import atomic_file, output_errors
from loraft.io.resources import require_free_bytes
from loraft.kernels.pieces import Run
from loraft.merging.merged_tensors import working_ahead

HEADER_BYTES = 64 << 20
"""Room for what stands before the tensors: a vocabulary of 250,000 tokens with its merges takes half of it."""
ANOTHER_FILE = "Name another file as `out`."


@dataclass(frozen=True, eq=False)
class GgufFile:
    """What a file will hold.

    Attributes:
        values: The keys; `general.architecture` is among them.
        tensors: In their order.
        numbers: The numbers of a tensor in order and in float32, as `run` makes them.
        notes: What a person should know, a sentence each.
    """

    values: Mapping[str, Value]
    tensors: Sequence[GgufTensor]
    numbers: Callable[[GgufTensor, Run], Iterable[Tensor]]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def write(self, out: Path, observer: Observer, *, base: str, overwrite: bool) -> None:
        """Write it, whole or not at all; the observer is told how far it is.

        Raises:
            RunFolderError: `out` is there already, is no .gguf file, is the base, or cannot be written.
            NonFiniteError: A number is NaN, infinite, or too large for its type.
            ResourceError: The disk is too small.
            DiskFullError: The disk filled up all the same.
        """
        refuse_taken_file(out, base=base, overwrite=overwrite)
        needed = self.num_bytes + HEADER_BYTES
        remedy = "Free some space, name an `out` on another disk, or a smaller `outtype`."
        require_free_bytes(out.parent, needed, "the GGUF file", remedy=remedy)
        with output_errors(out), atomic_file(out, remedy=remedy, needed=needed) as beside:
            self._write(beside, observer)

    def _write(self, file: Path, observer: Observer) -> None:
        """Write it where there is nothing yet; each piece of a tensor is written before the next is asked for."""
        alignment = _write_header(file, self.values, self.tensors)
        total, written = self.num_bytes, 0
        with file.open("ab") as stream, working_ahead() as run:
            for tensor in self.tensors:
                stream.write(bytes(-stream.tell() % alignment))
                start = stream.tell()
                for part in tensor.encoded(self.numbers(tensor, run)):
                    written += stream.write(part)
                    observer(Progress("bytes written", written, total))
                if (size := stream.tell() - start) != tensor.num_bytes:
                    raise ValueError(f"{tensor.name} has room for {tensor.num_bytes:,} bytes, not {size:,}")
            stream.write(bytes(-stream.tell() % alignment))


def _write_header(file: Path, values: Mapping[str, Value], tensors: Sequence[GgufTensor]) -> int:
    """Write what stands before the tensors; where each of them begins is a multiple of what is given back."""
    import numpy as np
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(file, str(values["general.architecture"]))
    for key, value in values.items():
        if key != "general.architecture":
            kind = GGUFValueType.UINT32 if type(value) is int else GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
    for tensor in tensors:
        # The numpy dtype is asked for only where no type of ggml's own is given.
        shape = tensor.shape
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.num_bytes, ggml_type(tensor.kind))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return writer.data_alignment


def refuse_taken_file(out: Path, *, base: str, overwrite: bool) -> None:
    """Refuse a place that is no .gguf file's, that is taken, or where the base lies, which is called `base`.

    Raises:
        RunFolderError: It is one of these.
    """
    remedy = ANOTHER_FILE
    if out.suffix != ".gguf":
        name = out.name[:-5] if out.name.lower().endswith(".gguf") else out.name
        message, remedy = "is not the name of a .gguf file", f"Name it {name or 'model'}.gguf."
    elif out.is_dir():
        message = "is a folder"
    elif out.exists() and os.path.exists(base) and os.path.samefile(out, base):
        message = "is the base that would be read"
    elif (out.exists() or out.is_symlink()) and not overwrite:
        message, remedy = "is there already", "Replace it by `overwrite`, or name another `out`."
    else:
        return
    raise RunFolderError(message, where=out, remedy=remedy)

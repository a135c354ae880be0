"""One file of pickled tensors written as safetensors: the work of the process that opens it.

It is asked in one JSON object on standard input, and answers in lines of JSON: how far it is, and at the end what it
wrote, or what is wrong with the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from loraft.converting.confinement import confine, leave_network
from loraft.errors import ModelError
from loraft.io.asked_process import Answer, answering

ZIP = b"PK\x03\x04"
"""How torch tells its files, which are zip archives, from those that it wrote before version 1.6."""
NOT_ALLOWED = re.compile(r"(?:GLOBAL|Unsupported (?:global|class)[: ]+(?:GLOBAL )?)\s*([\w.]+)")
"""What torch says that a pickle asked for; nothing of it was called."""
BLOCK = 1 << 24
"""Numbers that are written and summed at once."""
MOST_GROWTH = 4
"""How many times the bytes of its file the tensors of one may take: views of one memory are written apart."""
AGAIN = "Copy or download it again."


def serve() -> None:
    """Answer one question, and end."""
    asked, tell = json.load(sys.stdin), answering()
    leave_network()
    source, out = Path(asked["source"]), Path(asked["out"])
    try:
        import torch  # what it holds is not counted

        torch.set_num_threads(1)
        confine(out, source.stat().st_size)
        tell({"written": rewrite(source, out, asked["ties"], lambda done: tell({"done": done}))})
    except ModelError as error:
        tell({"problem": asdict(error.problems[0])})


def rewrite(source: Path, out: Path, ties: Mapping[str, str], progress: Callable[[int], None]) -> Answer:
    """Write the tensors of a file as safetensors, and tell their names with the sha256 of each, and what was left out.

    Left out is a tensor that lies in the memory of the one that it is tied to: `ties` names for each tensor of the
    model whose numbers are another's that other one, as transformers ties them. All others are written, each whole.

    Raises:
        ModelError: The file holds something else than tensors, asks for code to be run, or is damaged.
    """
    from loraft.models.safetensors_index import in_order, raw_bytes, slot_of, write_shard

    sizes = _sizes_in_archive(source)
    tensors = _loaded(source, sizes is not None)
    if sizes is not None:
        _refuse_cut_short(source, tensors, sizes)
    tied = [name for name, tensor in tensors.items() if _is_tied(name, tensor, tensors, ties)]
    kept = {name: tensor for name, tensor in tensors.items() if name not in tied}
    try:
        slots = in_order(slot_of(name, tensor) for name, tensor in kept.items())
    except KeyError:
        _refuse(source, "holds numbers of a type that loraft converts in no file")
    total, size = sum(slot.num_bytes for slot in slots), source.stat().st_size
    if total > MOST_GROWTH * size:
        _refuse(source, f"its {size:,} bytes would become {total:,}, as nothing that was trained does")
    sums: dict[str, str] = {}
    done = 0

    def pieces(slot: Any) -> Iterator[Any]:
        nonlocal done
        digest = hashlib.sha256()
        for piece in kept[slot.name].contiguous().reshape(-1).split(BLOCK):
            digest.update(raw_bytes(piece))
            yield piece
            done += piece.numel() * piece.element_size()
            progress(done)
        sums[slot.name] = digest.hexdigest()

    write_shard(out, slots, pieces)
    return {"sums": sums, "tied": tied, "bytes": total}


def _refuse(source: Path, message: str, remedy: str | None = AGAIN) -> NoReturn:
    raise ModelError(message, where=source, remedy=remedy)


def _sizes_in_archive(source: Path) -> Counter[int] | None:
    """How many parts of an archive have so many bytes; None of a file that is no archive.

    Raises:
        ModelError: torch would not have written it, or it is not as it was written.
    """
    with source.open("rb") as stream:
        if stream.read(4) != ZIP:
            return None
    try:
        with ZipFile(source) as archive:
            parts = archive.infolist()
            if any(part.compress_type != ZIP_STORED for part in parts):
                _refuse(source, "is a compressed archive, and torch compresses nothing")
            if sum(part.file_size for part in parts) > source.stat().st_size:
                _refuse(source, "is an archive whose parts lie over one another")
            damaged = archive.testzip()
    except (BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        _refuse(source, f"is an archive that cannot be read: {error}")
    if damaged is not None:
        _refuse(source, f"is damaged: {damaged} does not agree with its checksum")
    return Counter(part.file_size for part in parts)


def _refuse_cut_short(source: Path, tensors: Mapping[str, Any], sizes: Counter[int]) -> None:
    """Refuse tensors that are no part of the archive: where one is too short, torch maps what lies behind it."""
    storages = (tensor.untyped_storage() for tensor in tensors.values())
    held = Counter({each.data_ptr(): each.nbytes() for each in storages if each.nbytes()}.values())
    if strange := held - sizes:
        _refuse(source, f"has no part of the {next(iter(strange)):,} bytes that one of its tensors takes")


def _loaded(source: Path, mapped: bool) -> dict[str, Any]:
    """The tensors of a file by name, on the CPU.

    Raises:
        ModelError: It holds something else.
    """
    import torch

    try:
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        _refuse(source, "takes more memory to open than a file of its size may")
    except Exception as error:  # what a pickle that is none makes torch raise has no common root
        _refuse_pickle(source, error)
    if isinstance(found, Mapping) and isinstance(inner := found.get("state_dict"), Mapping):
        found = inner  # as Lightning saves it
    if not isinstance(found, Mapping) or not found:
        _refuse(source, f"holds no tensors by name: it is of type {type(found).__name__}", None)
    strange = [repr(name) for name, value in found.items() if not (isinstance(name, str) and _is_plain(value))]
    if strange or "__metadata__" in found:
        _refuse(source, f"{(strange or ['__metadata__'])[0]} in it is no tensor that holds numbers", None)
    return {name: tensor.detach() for name, tensor in found.items()}


def _refuse_pickle(source: Path, error: Exception) -> NoReturn:
    """Tell what torch said of a file, in one sentence."""
    said = str(error)
    if asked := NOT_ALLOWED.search(said):
        message = f"asks for {asked[1]}, which is code and no tensor; it was not run"
        _refuse(source, message, "Do not use this file; or ask whoever made it for safetensors.")
    if re.search(r"can't allocate memory|not enough memory|bad_alloc", said):
        _refuse(source, "takes more memory to open than a file of its size may")
    reason = said.rpartition("WeightsUnpickler error:")[2]  # before it torch tells how a pickle can be run
    first = (reason.strip().splitlines() or [type(error).__name__])[0]
    _refuse(source, f"is no file of tensors: {first[:200]}")


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor that lies in memory number by number."""
    import torch

    if not isinstance(value, torch.Tensor):
        return False
    return value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"


def _is_tied(name: str, tensor: Any, tensors: Mapping[str, Any], ties: Mapping[str, str]) -> bool:
    """Whether a tensor is in the file's memory the one that the model ties it to, which is in the file too.

    The file may be of the model without its head, whose names lack the first part.
    """
    for target, source in ties.items():
        if name in (target, target.partition(".")[2]):
            other = tensors.get(source, tensors.get(source.partition(".")[2]))
            if other is not None and other is not tensor and _place(other) == _place(tensor):
                return True
    return False


def _place(tensor: Any) -> tuple[object, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype

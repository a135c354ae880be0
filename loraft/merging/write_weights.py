"""Adapters folded into their base, from files to files.

No model is held in memory: tensor by tensor from the base's memory-mapped files, a few rows at a time, cast once. The
next pieces are worked on while one is written. A piece is small, so each is one thread's work: splitting it would cost
more than it gains, above all on a machine that has other things to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from loraft.adapters.delta import Run, cast_pieces, updated_pieces
from loraft.errors import NonFiniteError
from loraft.merging.prepare_merge import Merge
from loraft.models.quantize import quantize_roundtrip
from loraft.models.safetensors_index import TensorHeader, mapped_tensor
from loraft.models.safetensors_writer import TORCH_DTYPES, Slot, in_order, write_index, write_shard

BYTES_AT_ONCE = 4 << 20
MOST_WORKERS = 8
WORDS = {dtype: word for word, dtype in TORCH_DTYPES.items()}
Item = TypeVar("Item")
Result = TypeVar("Result")


def plan_files(merge: Merge) -> dict[str, list[Slot]]:
    """What each file of the result holds: those of the base, under their names, with what is new in the last one.

    A classifier's are under its own names, without what the base has besides: transformers tells by the names whether
    a file holds a model with a head, and another head than the classifier's would stay unused.
    """
    files: dict[str, list[Slot]] = {}
    ours = {theirs: name for name, theirs in merge.names.items()} if merge.labels else dict.fromkeys(merge.headers)
    for name, header in sorted(merge.headers.items(), key=lambda item: (item[1].file.name, item[1].start)):
        if name in ours:
            files.setdefault(header.file.name, []).append(Slot(ours[name] or name, _word(merge, header), header.shape))
    changed = dict.fromkeys([*merge.plan.untied, *merge.plan.replaced, *merge.plan.updates])
    for name in (name for name in changed if name not in merge.names):
        shape = merge.plan.replaced[name].shape if name in merge.plan.replaced else _source(merge, name).shape
        last = next(reversed(files.values()))
        last.append(Slot(name, WORDS[merge.dtype], tuple(shape)))
    return {file: in_order(slots) for file, slots in files.items()}


def _word(merge: Merge, header: TensorHeader) -> str:
    """The dtype of a tensor in the result; what is no floating number stays as it is."""
    if header.dtype not in TORCH_DTYPES or merge.asked_dtype is None:
        return header.dtype
    return WORDS[merge.asked_dtype]


def _source(merge: Merge, name: str) -> TensorHeader:
    """Where the base has a tensor of the model: a tied one with the module that it shares its weight with."""
    source = merge.plan.untied.get(name, name)
    return merge.headers[merge.names.get(source, source)]


def write_weights(merge: Merge, folder: Path, progress: Callable[[int, int], None]) -> int:
    """Write the merged tensors into `folder`.

    Args:
        merge: What to write.
        folder: An empty folder.
        progress: Is told the bytes that are written, and all there will be.

    Returns:
        The bytes of all tensors.

    Raises:
        NonFiniteError: A merged tensor holds NaN or infinity.
    """
    files = plan_files(merge)
    total = sum(slot.num_bytes for slots in files.values() for slot in slots)
    models_names = {theirs: ours for ours, theirs in merge.names.items()}
    written = 0
    with _working_ahead() as run:

        def pieces(slot: Slot) -> Iterator[Tensor]:
            nonlocal written
            name = models_names.get(slot.name, slot.name)
            for piece in _merged(merge, name, TORCH_DTYPES.get(slot.dtype), run):
                yield piece
                written += piece.numel() * piece.element_size()
                progress(written, total)

        for file, slots in files.items():
            write_shard(folder / file, slots, pieces)
    if len(files) > 1:
        write_index(folder, {slot.name: file for file, slots in files.items() for slot in slots}, total)
    return total


def _merged(merge: Merge, name: str, dtype: torch.dtype | None, run: Run) -> Iterable[Tensor]:
    """One tensor of the result, in pieces; a dtype of None is that of a tensor that holds no floating numbers."""
    plan, checked = merge.plan, _checked(run, name)
    replacement = plan.replaced.get(name)
    if replacement is not None:
        return cast_pieces(replacement, dtype or replacement.dtype, run=checked)
    header = _source(merge, name)
    changes = name in plan.updates or merge.base == "dequantized"
    if dtype is None or (not changes and TORCH_DTYPES[header.dtype] == dtype):
        return _bytes(header)
    weight = mapped_tensor(header)
    if merge.base == "dequantized":
        weight = _as_trained(merge, name, weight, run)
    if name in plan.updates:
        return updated_pieces(weight, plan.updates[name], dtype, transposed=name in plan.transposed, run=checked)
    return cast_pieces(weight, dtype, run=checked)


@contextmanager
def _working_ahead() -> Iterator[Run]:
    """Give a `map` that has several threads work on what is next; two results a thread wait at most."""
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    # Setting makes a pool of torch's own, which a fork of this process could not use: only where there is need.
    pool = ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1) if threads > 1 else None)

    def run(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        if threads > 1:
            torch.set_num_threads(threads)  # a worker's choice is also that of threads that begin later


def _bytes(header: TensorHeader) -> Iterator[Tensor]:
    """A tensor of the base as its file has it, byte for byte and some at a time."""
    with header.file.open("rb") as stream:
        stream.seek(header.start)
        left = header.stop - header.start
        while left:
            part = bytearray(stream.read(min(left, BYTES_AT_ONCE)))
            left -= len(part)
            yield torch.frombuffer(part, dtype=torch.uint8)


def _as_trained(merge: Merge, name: str, weight: Tensor, run: Run) -> Tensor:
    """A tensor of the base as a model in 4 bits computes with it."""
    dtype = merge.trained_dtype or merge.dtype
    if name not in merge.quantized or merge.storage is None:
        return weight.to(dtype)
    if name in merge.plan.transposed:
        return quantize_roundtrip(weight.T, merge.storage, dtype, run=run).T
    return quantize_roundtrip(weight, merge.storage, dtype, run=run)


def _checked(run: Run, name: str) -> Run:
    """Makes pieces as `run` does, and looks at each before it is given on."""

    def work_and_look(work: Callable[[slice], Tensor], spans: Iterable[slice]) -> Iterable[Tensor]:
        return run(lambda span: _finite(work(span), name), spans)

    return work_and_look


def _finite(piece: Tensor, name: str) -> Tensor:
    # The sum is quick, and finite where every number is, unless they are huge.
    if not bool(torch.isfinite(piece.sum())) and not bool(torch.isfinite(piece).all()):
        remedy = "Its numbers are too large for float16: use bfloat16." if piece.dtype == torch.float16 else None
        raise NonFiniteError(f"the merged tensor {name} holds NaN or infinity", remedy=remedy)
    return piece

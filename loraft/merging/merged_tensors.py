"""The tensors that a merge makes, by the names that its files have for them, a few rows at a time.

No model is held in memory: tensor by tensor from the base's memory-mapped files, a few rows at a time, cast once. The
next pieces are worked on while one is written. A piece is small, so each is one thread's work: splitting it would cost
more than it gains, above all on a machine that has other things to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from loraft.adapters.effect import Run, cast_pieces
from loraft.merging.converted_weights import RemadeTensors
from loraft.merging.merged_pieces import checked, merged_pieces
from loraft.merging.prepare_merge import Merge
from loraft.models.packed_weights import PackedHeader
from loraft.models.safetensors_index import TORCH_DTYPES, Slot, TensorHeader, in_order, mapped_tensor

BYTES_AT_ONCE = 4 << 20
MOST_WORKERS = 8
WORDS = {dtype: word for word, dtype in TORCH_DTYPES.items()}


class MergedTensors:
    """What a merge makes, tensor by tensor; each is given once.

    Attributes:
        files: What each file of the result holds.
    """

    def __init__(self, merge: Merge) -> None:
        """Plan the files, and find what is computed with what.

        Raises:
            AdapterError: A tensor is changed that transformers knows no way back to the files of.
        """
        self.files = plan_files(merge)
        self._merge, self._names, self._remade = merge, _models_names(merge), RemadeTensors(merge)

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Every tensor of the result, by its name in the files."""
        return {slot.name: slot for slots in self.files.values() for slot in slots}

    def called(self, slot: Slot) -> str:
        """What the model calls a tensor of the files."""
        return self._names.get(slot.name, slot.name)

    def pieces(self, slot: Slot, run: Run = map) -> Iterable[Tensor]:
        """A tensor, in its order, as `run` makes it: numbers of its dtype, or the bytes of the base's file.

        Raises:
            NonFiniteError: While iterating: it holds NaN or infinity.
        """
        again = self._remade.take(slot.name)
        if again is not None:
            return cast_pieces(again, again.dtype)
        return _merged(self._merge, self.called(slot), TORCH_DTYPES.get(slot.dtype), run)

    def numbers(self, slot: Slot, run: Run = map) -> Iterator[Tensor]:
        """The numbers of a tensor of floating ones, in their order and in its dtype, as `run` makes them.

        Raises:
            NonFiniteError: While iterating: it holds NaN or infinity.
        """
        dtype = TORCH_DTYPES[slot.dtype]
        return (piece.view(dtype) if piece.dtype == torch.uint8 else piece for piece in self.pieces(slot, run))


def plan_files(merge: Merge) -> dict[str, list[Slot]]:
    """What each file of the result holds: those of the base, under their names, with what is new in the last one.

    A classifier's are under its own names, without what the base has besides: transformers tells by the names whether
    a file holds a model with a head, and another head than the classifier's would stay unused.
    """
    files: dict[str, list[Slot]] = {}
    models_names = _models_names(merge)
    ours = models_names if merge.labels else {name: name for name in merge.headers}
    for name, header in sorted(merge.headers.items(), key=lambda item: (item[1].file.name, item[1].start)):
        if name in ours:  # what is no floating number stays as it is
            word = WORDS[merge.dtype] if merge.casts and header.dtype in TORCH_DTYPES else header.dtype
            shape = merge.grown.get(models_names.get(name, name), header.shape)
            files.setdefault(header.file.name, []).append(Slot(ours[name], word, shape))
    last = next(reversed(files.values()))
    for name in dict.fromkeys([*merge.plan.untied, *merge.plan.changed]):
        if name not in merge.sources and name not in merge.converted:
            of = merge.plan.replaced[name] if name in merge.plan.replaced else _source(merge, name)
            last.append(Slot(name, WORDS[merge.dtype], merge.grown.get(name, tuple(of.shape))))
    return {file: in_order(slots) for file, slots in files.items()}


def _models_names(merge: Merge) -> dict[str, str]:
    """What the model calls the tensors of the base, by their names in its files; what it computes with keeps those."""
    made_of = (header.name for parts in merge.converted.values() for header in parts)
    return {**{name: name for name in made_of}, **{header.name: name for name, header in merge.sources.items()}}


def _source(merge: Merge, name: str) -> TensorHeader:
    """Where the base has a tensor of the model: a tied one with the module that it shares its weight with."""
    source = merge.plan.untied.get(name, name)
    return merge.sources.get(source) or merge.headers[source]


def _merged(merge: Merge, name: str, dtype: torch.dtype | None, run: Run) -> Iterable[Tensor]:
    """One tensor of the result, in pieces; a dtype of None is that of a tensor that holds no floating numbers."""
    replacement = merge.plan.replaced.get(name)
    if replacement is not None:
        return cast_pieces(replacement, dtype or replacement.dtype, run=checked(run, name))
    header = _source(merge, name)
    changes = (
        name in merge.plan.changed
        or name in merge.grown
        or merge.storage is not None
        or isinstance(header, PackedHeader)
    )
    if dtype is None or (not changes and TORCH_DTYPES[header.dtype] == dtype):
        return _bytes(header)
    if isinstance(header, PackedHeader):
        weight = header.unpacked(merge.trained_dtype or merge.dtype)
    else:
        weight = mapped_tensor(header)
    return merged_pieces(merge, name, weight, dtype, run)


@contextmanager
def working_ahead() -> Iterator[Run]:
    """Give a `map` that has several threads work on what is next; two results a thread wait at most."""
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    # Setting makes a pool of torch's own, which a fork of this process could not use: only where there is need.
    pool = ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1) if threads > 1 else None)

    def run(work: Callable[[slice], Tensor], spans: Iterable[slice]) -> Iterator[Tensor]:
        waiting: deque[Future[Tensor]] = deque()
        for span in spans:
            waiting.append(pool.submit(work, span))
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
        for start in range(header.start, header.stop, BYTES_AT_ONCE):
            part = bytearray(stream.read(min(header.stop - start, BYTES_AT_ONCE)))
            yield torch.frombuffer(part, dtype=torch.uint8)

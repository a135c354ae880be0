"""The tensors that a merge makes, by the names that its files have for them, a few rows at a time.

No model is held in memory: tensor by tensor from the base's memory-mapped files, a few rows at a time, cast once. The
next pieces are worked on while one is written. A piece is small, so each is one thread's work: splitting it would cost
more than it gains, above all on a machine that has other things to do.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraft.adapters.effect import cast_pieces, pieces_with_rows, updated_pieces
from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError, NonFiniteError
from loraft.kernels.pieces import Run
from loraft.merging.prepare_merge import Merge
from loraft.merging.quantize_roundtrip import quantize_roundtrip
from loraft.models.base_files import Conversion
from loraft.models.packed_weights import PackedHeader
from loraft.models.safetensors_index import TORCH_DTYPES, WORDS, Slot, TensorHeader, in_order

BYTES_AT_ONCE = 4 << 20
MOST_WORKERS = 8


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
        """Every tensor of the result, by what the model calls it."""
        return {self._names.get(slot.name, slot.name): slot for slots in self.files.values() for slot in slots}

    def pieces(self, slot: Slot, run: Run = map) -> Iterable[Tensor]:
        """A tensor, in its order, as `run` makes it: numbers of its dtype, or the bytes of the base's file.

        Raises:
            NonFiniteError: While iterating: it holds NaN or infinity.
        """
        again = self._remade.take(slot.name)
        if again is not None:
            return [again]
        return _merged(self._merge, self._names.get(slot.name, slot.name), TORCH_DTYPES.get(slot.dtype), run)

    def numbers(self, slot: Slot, run: Run = map) -> Iterator[Tensor]:
        """The numbers of a tensor of floating ones, in their order and in its dtype, as `run` makes them.

        Raises:
            NonFiniteError: While iterating: it holds NaN or infinity.
        """
        dtype = TORCH_DTYPES[slot.dtype]
        return (piece.view(dtype) if piece.dtype == torch.uint8 else piece for piece in self.pieces(slot, run))


class RemadeTensors:
    """The tensors of the base's files that a merge changes and that loading computes with, by their names there.

    Loading makes others of them, such as all experts in one, which are merged and taken apart again. Those that are
    computed with one another are made together, once one of them is asked for.
    """

    def __init__(self, merge: Merge) -> None:
        """Find what is computed with what.

        Raises:
            AdapterError: transformers does not know the way back.
        """
        self._merge, self._made = merge, dict[str, Tensor]()
        self._groups: dict[str, tuple[str, ...]] = {}
        quantized = merge.quantized if merge.storage is not None else frozenset()
        changed = sorted(merge.converted.keys() & {*merge.plan.changed, *quantized})
        if not changed:
            return
        model = merge.base.model
        self._conversion, state = Conversion(model, merge.base.headers), model.state_dict()
        for name, group in _groups(merge, changed).items():
            parts = {header.name for each in group for header in merge.converted[each]}
            if self._conversion.back({each: state[each] for each in group}).keys() != parts:
                message = f"it changes {name}, which the base's files hold in another form, with no known way back"
                remedy = "Use it unmerged: `loraft.generate` with `adapters`."
                raise AdapterError(message, where=merge.adapters[0].files.folder, remedy=remedy)
            self._groups |= dict.fromkeys(parts, group)

    def take(self, name: str) -> Tensor | None:
        """A tensor of the files as the merge makes it, which is given once; None of one that is merged without this.

        Raises:
            NonFiniteError: A merged tensor holds NaN or infinity.
        """
        if name not in self._groups:
            return None
        if name not in self._made:
            self._made |= self._remade(self._groups[name])
        return self._made.pop(name)

    def _remade(self, group: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of the files that some of the model are made of, merged."""
        merge = self._merge
        parts = {header.name: header for name in group for header in merge.converted[name]}
        stored = TORCH_DTYPES[next(iter(parts.values())).dtype]
        loaded_in = merge.loaded_in if merge.is_packed else stored
        loaded = self._conversion.load({name: each.tensor(loaded_in).to(loaded_in) for name, each in parts.items()})
        dtype, merged = merge.dtype if merge.casts else stored, dict[str, Tensor]()
        for name in group:
            shape, whole = loaded[name].shape, loaded.pop(name)
            merged[name] = torch.cat(list(_merged_pieces(merge, name, whole, dtype))).view(shape)
        return self._conversion.back(merged)


def _groups(merge: Merge, changed: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The tensors of the model that are made of some of the same tensors as one that is changed, by its name."""
    of_part = defaultdict[str, list[str]](list)
    for name, parts in merge.converted.items():
        for part in parts:
            of_part[part.name].append(name)
    found: dict[str, tuple[str, ...]] = {}
    for name in changed:
        if not any(name in group for group in found.values()):
            found[name] = tuple(dict.fromkeys(each for part in merge.converted[name] for each in of_part[part.name]))
    return found


def plan_files(merge: Merge) -> dict[str, list[Slot]]:
    """What each file of the result holds: those of the base, under their names, with what is new in the last one.

    A classifier's are under its own names, without what the base has besides: transformers tells by the names whether
    a file holds a model with a head, and another head than the classifier's would stay unused.
    """
    files: dict[str, list[Slot]] = {}
    models_names = _models_names(merge)
    ours = models_names if merge.labels else {name: name for name in merge.base.headers}
    for name, header in sorted(merge.base.headers.items(), key=lambda item: (item[1].file.name, item[1].start)):
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
    return merge.sources.get(source) or merge.base.headers[source]


def _merged(merge: Merge, name: str, dtype: torch.dtype | None, run: Run) -> Iterable[Tensor]:
    """One tensor of the result, in pieces; a dtype of None is that of a tensor that holds no floating numbers."""
    if (trained := merge.plan.replaced.get(name)) is not None:
        return _merged_pieces(merge, name, trained, dtype or trained.dtype, run)
    header = _source(merge, name)
    changes = name in merge.plan.changed or name in merge.grown or merge.storage is not None
    changes = changes or isinstance(header, PackedHeader)
    if dtype is None or (not changes and TORCH_DTYPES[header.dtype] == dtype):
        return _bytes(header)
    return _merged_pieces(merge, name, header.tensor(merge.loaded_in), dtype, run)


def _merged_pieces(merge: Merge, name: str, weight: Tensor, dtype: torch.dtype, run: Run = map) -> Iterable[Tensor]:
    """The tensor that the model calls `name`, and whose numbers in the base are `weight`, as the result has it.

    Raises:
        NonFiniteError: While iterating: it holds NaN or infinity.
    """
    plan, looked_at = merge.plan, _checked(run, name)
    if name in plan.replaced:
        return cast_pieces(plan.replaced[name], dtype, run=looked_at)
    if merge.storage is not None:
        weight = _as_trained(merge, merge.storage, name, weight, run)
    if name in plan.updates:
        return updated_pieces(weight, plan.updates[name], dtype, transposed=name in plan.transposed, run=looked_at)
    if name in plan.rows:
        return pieces_with_rows(weight, *plan.rows[name], dtype, run=looked_at)
    if name in plan.added:
        return cast_pieces(torch.stack([weight.float(), *plan.added[name]]).sum(0), dtype, run=looked_at)
    if name in merge.grown:  # what is added to the logits, and nothing for a new token
        weight = pad(weight, (0, merge.grown[name][-1] - weight.shape[-1]))
    return cast_pieces(weight, dtype, run=looked_at)


def _as_trained(merge: Merge, storage: QuantizationSection, name: str, weight: Tensor, run: Run) -> Tensor:
    """A tensor of the base as a model that stores it quantized computes with it."""
    dtype = merge.loaded_in
    if name not in merge.quantized:
        return weight.to(dtype)
    if name in merge.plan.transposed and weight.dim() == 2:
        return quantize_roundtrip(weight.T, storage, dtype, run=run).T
    return quantize_roundtrip(weight, storage, dtype, run=run)


def _checked(run: Run, name: str) -> Run:
    """Makes pieces as `run` does, and looks at each before it is given on."""

    def finite(piece: Tensor) -> Tensor:
        # The sum is quick, and finite where every number is, unless they are huge.
        if not bool(torch.isfinite(piece.sum())) and not bool(torch.isfinite(piece).all()):
            remedy = "Its numbers are too large for float16: use bfloat16." if piece.dtype == torch.float16 else None
            raise NonFiniteError(f"the merged tensor {name} holds NaN or infinity", remedy=remedy)
        return piece

    return lambda work, spans: run(lambda span: finite(work(span)), spans)


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

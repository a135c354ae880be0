"""A CUDA device that computes nothing: tensors of the CPU are real, those of CUDA have a shape and no numbers.

Whole numbers are an exception: tokens, positions and masks are computed beside, on the CPU, since what a model does may
depend on them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.cuda_rehearsal.ledger import Ledger, where

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
PRODUCTS = {aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.baddbmm_, aten.mv, aten.addmv}
SIZED_BY_NUMBERS = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.repeat_interleave}
"""Operations whose result has as many elements as the numbers say: CUDA waits for that."""
WAITING = {aten.multinomial, aten.equal, aten.bincount}
"""Operations that look at their numbers on the host."""
NO_KERNEL = {
    aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.detach, aten.alias,
    aten._unsafe_view, aten._reshape_alias, aten.lift_fresh,
}  # fmt: skip
PINNED: set[int] = set()
"""The storages of the host that are pinned."""
NUMBERS = "_numbers"
"""Where a tensor of the device has its whole numbers."""


class FakeCuda(TorchDispatchMode):
    """Every operation on the device, written down and not computed."""

    current: FakeCuda | None = None

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._recorded: list[tuple[Any, Any, Any, Any]] | None = None

    @contextmanager
    def capture(self, graph: FakeGraph) -> Iterator[None]:
        """Record what is launched, and launch nothing; what the host waits for is refused, as CUDA does."""
        graph.device, self._recorded = self, []
        try:
            with self.ledger.capturing():
                yield
            graph.operations = self._recorded
        finally:
            self._recorded = None

    def launch(self, graph: FakeGraph) -> None:
        """A recorded graph is one launch; whole numbers are computed anew, by what the host gave when it was made."""
        self.ledger.launches["a graph"] += 1
        for func, args, kwargs, result in graph.operations:
            numbers = _numbers_of(func, _leaves((*args, *kwargs.values())), args, kwargs)
            self._number(result, numbers)

    @staticmethod
    def _number(result: Any, numbers: Any) -> None:
        for made, real in zip(_leaves((result,)), _leaves((numbers,)), strict=False):
            if isinstance(made, FakeTensor) and isinstance(real, Tensor):
                setattr(made, NUMBERS, real)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        leaves = _leaves((*args, *kwargs.values()))
        onto = kwargs.get("device")
        if not any(isinstance(leaf, FakeTensor) for leaf in leaves) and not _is_cuda(onto):
            if func._overloadpacket is aten.copy_ and args[1].is_meta:  # the host's numbers, where there are none
                return args[0]
            pinned = kwargs.pop("pin_memory", False)
            made = func(*args, **kwargs)
            return pinned_from_now_on(made) if pinned else made
        if func.namespace == "prim":
            return self._asked(func, args, kwargs)
        if _is_composite(func):  # in inference mode they come here whole
            with self:  # by torch's own parts in C++, which are faster than those in Python
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        numbers = _numbers_of(func, leaves, args, kwargs)
        read = self._read_by_host(func, args, kwargs, numbers)
        if read is not None:
            return read
        _check_dtypes(func, args)
        if any(isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor) for leaf in leaves):
            args, kwargs = tree_map_only(Tensor, self._on_device, (args, kwargs))
        with self._fake:
            result = _without_numbers(func)(*args, **kwargs)
        self._write_down(func, result)
        self._number(result, numbers)
        if self._recorded is not None:
            self._recorded.append((func, args, kwargs, result))
        return result

    def _asked(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a tensor says of itself: most often its device, for which no mode needs to be entered."""
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        with self._fake:
            return func(*args, **kwargs)

    def _read_by_host(self, func: Any, args: Any, kwargs: Any, numbers: Any) -> Any:
        """What the host gets where an operation lets it wait; None where it does not wait or gets a tensor there."""
        packet, first = func._overloadpacket, args[0] if args else None
        if packet is aten._local_scalar_dense:
            self.ledger.wait("item")
            return _item(first)
        if packet in WAITING:
            self.ledger.wait(str(packet))
            if packet is aten.equal:
                return first.shape == args[1].shape if numbers is None else numbers
        if packet is aten._to_copy and kwargs.get("device") is not None and not _is_cuda(kwargs["device"]):
            self.ledger.wait(f"copy of {tuple(first.shape)} to the host")
            return numbers if numbers is not None else torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if packet is aten.copy_ and first.device.type == "cpu":
            if not (_goes_on(packet, args, kwargs) and _is_pinned(first)):
                self.ledger.wait("copy_ to the host")
            return first
        self._look_at_copies(packet, args, kwargs)
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        by_mask = by_mask and not (packet is not aten.index and args[2].numel() == 1)  # one number is filled in
        if by_mask or (packet in SIZED_BY_NUMBERS and kwargs.get("output_size") is None):
            self.ledger.wait(str(packet))
            return None if packet in (aten.index_put, aten.index_put_) else self._sized(packet, args, numbers)
        return None

    def _look_at_copies(self, packet: Any, args: Any, kwargs: Any) -> None:
        """Write down a copy from the host that the host waits for."""
        if packet in (aten._to_copy, aten.copy_):
            source = args[0] if packet is aten._to_copy else args[1]
            goes_on = _goes_on(packet, args, kwargs) and _is_pinned(source)
            if source.device.type == "cpu" and source.numel() and not goes_on:
                self.ledger.copy(f"copy of {tuple(source.shape)} from the host")
        if packet is aten.index and any(isinstance(index, Tensor) and not index.is_cuda for index in args[1]):
            self.ledger.copy("index of the host")

    def _sized(self, packet: Any, args: Any, numbers: Any) -> Tensor:
        """A result as large as the numbers say, or as large as it may be where there are none."""
        if isinstance(numbers, Tensor):
            made = self._made(numbers.shape, numbers.dtype)
            setattr(made, NUMBERS, numbers)
            return made
        if packet is aten.nonzero:
            return self._made((args[0].numel(), args[0].dim()), torch.int64)
        mask = next(index for index in args[1] if isinstance(index, Tensor)) if packet is aten.index else args[1]
        real = getattr(mask, NUMBERS, None)
        count = mask.numel() if real is None else int(real.sum())
        return self._made((count, *args[0].shape[mask.dim() :]), args[0].dtype)

    def _made(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self._fake:
            return torch.empty(shape, dtype=dtype, device=CUDA)

    def _on_device(self, tensor: Tensor) -> Tensor:
        """A real tensor without its numbers: not `from_tensor`, which remembers what it was made from."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._fake:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")

    def _write_down(self, func: Any, result: Any) -> None:
        made = [leaf for leaf in _leaves((result,)) if isinstance(leaf, FakeTensor) and leaf.is_cuda]
        for tensor in made:
            self.ledger.hold(tensor)
        if made and self._recorded is None and not func.is_view and func._overloadpacket not in NO_KERNEL:
            self.ledger.launches[str(func)] += 1
            for tensor in made:
                if tensor.dim() > 1 and tensor.shape[-1] == tensor.shape[-2]:
                    self.ledger.squares[f"{func} at {where()}", tensor.shape[-1]] += 1


class FakeGraph:
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.device: FakeCuda | None = None
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Launch it."""
        assert self.device is not None, "nothing was recorded"
        self.device.launch(self)


def recording(graph: FakeGraph, **_: Any) -> Any:
    """In the place of `torch.cuda.graph`."""
    assert FakeCuda.current is not None
    return FakeCuda.current.capture(graph)


class NamedDevice(TorchFunctionMode):
    """What torch's functions do otherwise for CUDA, where a mode for operations alone does not see it.

    `cuda` is `cuda:0`, which a torch without CUDA cannot say, and lists become tensors of the host before they are
    copied.
    """

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) and _is_cuda(kwargs.get("device")):
            del kwargs["device"]
            return func(*args, **kwargs).to(CUDA)
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], FakeTensor):
            given = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(_indices(part).to(CUDA) if isinstance(part, list) else part for part in given)
            args = (args[0], index, *args[2:])
        if name == "cuda":
            return args[0].to(CUDA)
        if name in ("to", "_to") or name.startswith("new_"):
            args = tuple(_named(each) for each in args)
        if "device" in kwargs:
            kwargs["device"] = _named(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def rehearsal() -> Iterator[Ledger]:
    """While this is entered there is a CUDA device, and all that is done with it is in the ledger."""
    device = FakeCuda.current = FakeCuda()
    with device, NamedDevice():
        yield device.ledger


def _is_cuda(device: object) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _goes_on(packet: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host asks not to wait for a copy."""
    return bool(kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))


def _is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor lies in pinned memory."""
    return tensor.untyped_storage()._cdata in PINNED


def pinned_from_now_on(tensor: Tensor) -> Tensor:
    """The tensor, whose memory is known to be pinned."""
    storage = tensor.untyped_storage()
    PINNED.add(storage._cdata)
    weakref.finalize(storage, PINNED.discard, storage._cdata)
    return tensor


def _named(given: object) -> Any:
    if isinstance(given, str) and given == "cuda":
        return CUDA
    return CUDA if isinstance(given, torch.device) and given.type == "cuda" else given


def _indices(given: list[Any]) -> Tensor:
    return torch.tensor(given, dtype=None if given else torch.long)


def _leaves(given: Sequence[Any]) -> list[Any]:
    """All leaves of a sequence, by `tree_leaves` where they are held by others, which takes ten times as long."""
    found = []
    for each in given:
        found += tree_leaves(each) if isinstance(each, list | tuple | dict) else [each]
    return found


@cache
def _is_composite(func: Any) -> bool:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(func.name(), "CompositeImplicitAutograd") and not has(func.name(), "CPU")


def _item(tensor: Tensor) -> Any:
    numbers = getattr(tensor, NUMBERS, None)
    if numbers is not None:
        return numbers.item()
    return 1.0 if tensor.dtype.is_floating_point else tensor.dtype == torch.bool or 1


def _without_numbers(func: Any) -> Callable[..., Any]:
    """What gives the shapes of an operation's results: its own, but for one whose own torch 2.13 calls wrongly."""
    if func._overloadpacket is not aten._efficient_attention_backward:
        return func  # type: ignore[no-any-return]
    return lambda _, query, key, value, *__, **___: (*map(torch.empty_like, (query, key, value)), query.new_empty(0))


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def _numbers_of(func: Any, leaves: Sequence[Any], args: Any, kwargs: Any) -> Any:
    """The result on the CPU, where all that goes in and comes out is whole numbers that are known; else None."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    dtype = kwargs.get("dtype")
    if any(
        not hasattr(each, NUMBERS) if isinstance(each, FakeTensor) else not _is_whole(each.dtype) for each in tensors
    ):
        return None
    whole = func._overloadpacket is aten.arange or (func._overloadpacket is aten.full and isinstance(args[1], int))
    made_of_nothing = not tensors and not whole
    if (dtype is None and made_of_nothing) or (dtype is not None and not _is_whole(dtype)):
        return None
    args, kwargs = tree_map_only(FakeTensor, lambda each: getattr(each, NUMBERS), (args, dict(kwargs)))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    try:
        result = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    return result.clone() if func._overloadpacket is aten._to_copy else result


def _check_dtypes(func: Any, args: Any) -> None:
    """Refuse what the kernels of CUDA refuse: products of two dtypes, and attention that varlen does not take."""
    if func._overloadpacket in PRODUCTS:
        dtypes = [each.dtype for each in args[:3] if isinstance(each, Tensor)]
        if len(set(dtypes)) > 1:
            raise RuntimeError(f"{func}: operands must have the same dtype, but got {dtypes} at {where()}")
    if func._overloadpacket is aten._efficient_attention_forward:
        query, key, value, _, *ends = args[:6]
        assert query.shape == key.shape, (query.shape, key.shape)
        assert {key.dtype, value.dtype} == {query.dtype}, (query.dtype, key.dtype, value.dtype)
        assert query.shape[-1] * query.element_size() % 16 == 0, query.shape
        assert all(each.dtype == torch.int32 and each.is_cuda for each in ends), ends
    if "varlen_attn" in str(func) and "backward" not in str(func):
        query, key, value, *ends = args[:5]
        assert {query.dtype, key.dtype, value.dtype} in ({torch.bfloat16}, {torch.float16}), query.dtype
        assert all(each.dtype == torch.int32 and each.is_cuda for each in ends), ends
        if query.shape[-1] % 8 or query.shape[-1] > 256 or query.shape[-1] != value.shape[-1]:
            raise RuntimeError(f"FlashAttention takes no heads of {query.shape[-1]} and {value.shape[-1]}")
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1, (query.stride(), key.stride())

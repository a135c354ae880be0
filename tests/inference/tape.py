"""A record of a step, as CUDA makes one of a graph: operations done again, with the same numbers of the host."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loraft.inference.fixed_decoding import FixedDecoding, Step


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


def on_tape(step: Step) -> Step:
    """The step of a `FixedDecoding`, done again operation by operation into the tensors that it made.

    CUDA does not carry out what it records: the place is put back, and what was written there is written once more.
    """
    decoding: FixedDecoding = step.__self__  # type: ignore[attr-defined]
    place = decoding.place.clone()
    with _Tape() as tape:
        output = step()
    decoding.place.copy_(place)

    def replay() -> Tensor:
        for func, args, kwargs, result in tape.operations:
            for held, made in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(held, Tensor) and held.data_ptr() != made.data_ptr():
                    held.copy_(made)
        return output

    return replay

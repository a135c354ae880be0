"""How far what an adapter trained whole is from its base: tensors, and rows of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraft.adapters.adapter_reader import AdapterReader
from loraft.inspection.layers import ModelTable


@dataclass(frozen=True)
class SavedModule:
    """A tensor that was trained whole.

    Attributes:
        norm: How far it is from the base's; None where that is not at hand or has other sizes.
        relative: That, over the base's own norm.
    """

    name: str
    shape: tuple[int, ...]
    norm: float | None
    relative: float | None
    finite: bool


def saved_tensors(opened: AdapterReader, table: ModelTable | None) -> tuple[SavedModule, ...]:
    """Every tensor that was trained whole, biases among them, and the rows that were trained by themselves."""

    def of_base(name: str) -> Tensor | None:
        return table.storage.tensor(name) if table is not None else None

    found = [_moved(name, trained, of_base(name)) for name, trained in opened.whole.items()]
    for name, (rows, trained) in opened.tokens.items():
        weight = of_base(name)
        if weight is not None:
            weight = weight[rows] if max(rows, default=0) < len(weight) else None
        found.append(_moved(f"{name} ({len(trained)} rows)", trained, weight))
    return tuple(found)


def _moved(name: str, trained: Tensor, own: Tensor | None) -> SavedModule:
    """A tensor beside that of the base, where that is known and has the same sizes."""
    shape, finite = tuple(trained.shape), bool(torch.isfinite(trained).all())
    if not finite or own is None or own.shape != trained.shape:
        return SavedModule(name, shape, None, None, finite)
    norm, size = float((trained.float() - own.float()).norm()), float(own.float().norm())
    return SavedModule(name, shape, norm, norm / size if size else None, finite)

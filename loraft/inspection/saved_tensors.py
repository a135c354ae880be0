"""How far what an adapter trained whole is from its base: tensors, and rows of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    whole = [_saved(name, shape, opened, table) for name, shape in opened.shapes.items()]
    return (*whole, *(_token_rows(name, opened, table) for name in opened.tokens))


def _token_rows(name: str, opened: AdapterReader, table: ModelTable | None) -> SavedModule:
    """The rows of an embedding that were trained by themselves, beside those of the base."""
    rows, trained = opened.token_tensor(name)
    called, finite = f"{name} ({len(trained)} rows)", bool(torch.isfinite(trained).all())
    weight = table.storage.tensor(name) if table is not None else None
    if not finite or weight is None or len(rows) != len(trained) or max(rows, default=0) >= len(weight):
        return SavedModule(called, tuple(trained.shape), None, None, finite)
    own = weight[rows].float()
    norm, size = float((trained.float() - own).norm()), float(own.norm())
    return SavedModule(called, tuple(trained.shape), norm, norm / size if size else None, finite)


def _saved(name: str, shape: tuple[int, ...], opened: AdapterReader, table: ModelTable | None) -> SavedModule:
    trained = opened.saved_tensor(name).float()
    finite = bool(torch.isfinite(trained).all())
    weight = table.storage.tensor(name) if table is not None else None
    if not finite or weight is None or weight.shape != trained.shape:
        return SavedModule(name, shape, None, None, finite)
    norm, size = float((trained - weight.float()).norm()), float(weight.float().norm())
    return SavedModule(name, shape, norm, norm / size if size else None, finite)

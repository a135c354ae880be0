"""The modules of a model, as plans and adapters read them."""

from __future__ import annotations

import torch
from torch import nn

from loraft.models.modules import linear_modules


def test_sizes_are_whole_numbers_where_a_model_has_them_as_tensors() -> None:
    """The vision tower of inkling_mm_model does: what is counted by them goes into JSON."""
    linear = nn.Linear(6, 4)
    linear.in_features = torch.tensor(6)  # type: ignore[assignment]
    sizes = linear_modules(nn.Sequential(linear))["0"]
    assert sizes == (6, 4)
    assert {type(size) for size in sizes} == {int}

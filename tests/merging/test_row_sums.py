"""What a merged model's tensors are compared by, against sums made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from loraft.adapters.inject import AdaptedModel, attach
from loraft.merging.row_sums import RowSums, sums_of_merged
from tests.adapters.setting import disturb, run_config, tiny_loaded

BFLOAT16 = torch.finfo(torch.bfloat16).eps


def sums_of(model: nn.Module, dtype: torch.dtype) -> RowSums:
    """The sums of a model without adapters."""
    adapted: Any = SimpleNamespace(model=model, names=())
    return sums_of_merged(adapted, dtype, ())


def linear(*rows: list[float]) -> nn.Module:
    module = nn.Linear(len(rows[0]), len(rows))
    module.weight.data, module.bias.data = torch.tensor(rows), torch.zeros(len(rows))
    return module


def test_the_sums_are_of_each_row_and_of_each_number_of_a_vector() -> None:
    sums = sums_of(linear([1.0, 2.0], [3.0, -5.0]), torch.float32).sums
    assert {name: each.tolist() for name, each in sums.items()} == {"weight": [3.0, -2.0], "bias": [0.0, 0.0]}


def test_c25_a_number_that_rounds_to_its_neighbour_is_no_other_and_two_are() -> None:
    """1 and 2 are followed by 1 + 2⁻⁷ and 2 + 2⁻⁶ in bfloat16; a row may be off by one such step of its largest."""
    expected = sums_of(linear([1.0, 2.0, 1.0]), torch.bfloat16)
    assert expected.others(linear([1.0, 2.0 + 2 * BFLOAT16, 1.0])) == []
    assert expected.others(linear([1.0 + BFLOAT16, 2.0 + 2 * BFLOAT16, 1.0])) == ["weight"]
    assert expected.others(linear([1.0 + BFLOAT16 / 4, 2.0, 1.0])) == [], "that rounds to 1"


def test_a_tensor_of_another_size_or_name_is_another() -> None:
    expected = sums_of(linear([1.0, 2.0]), torch.float32)
    assert expected.others(linear([1.0, 2.0], [0.0, 0.0])) == ["weight", "bias"]
    assert expected.others(nn.Sequential(linear([1.0, 2.0]))) == ["weight", "bias"]
    assert expected.others(linear([1.0, float("nan")])) == ["weight"]
    mask = linear([1.0, float("-inf")])
    assert sums_of(mask, torch.float32).others(mask) == []


def test_a_weight_is_let_go_once_it_is_summed(tmp_path: Path) -> None:
    """Folding the adapter in would else make a second model, where the first is read from its files as it is needed."""
    adapted: AdaptedModel = attach(tiny_loaded(tmp_path), run_config(target_modules=["q_proj", "down_proj"]))
    disturb(adapted.trainable)
    updated = {
        f"model.layers.{layer}.{name}.weight" for layer in range(3) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    model = adapted.model.get_base_model()
    found = sums_of_merged(adapted, torch.float32, ())
    assert {name for name, weight in model.named_parameters() if weight.is_meta} == updated
    assert found.sums.keys() >= {*updated, "model.norm.weight", "lm_head.weight"}
    again = attach(tiny_loaded(tmp_path), run_config(target_modules=["q_proj", "down_proj"]))
    others = set(found.others(again.model.unload()))
    assert others == updated, "the base without the adapter"

"""What dropout and DoRA keep: by hand, and against what autograd keeps of a forward pass on a CPU."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraft.adapters.inject import attach
from loraft.planning.update_sizes import PLAIN, UpdateSizes, update_sizes
from tests.adapters.setting import run_config, tiny_loaded

TOKENS = 256
SIZES = UpdateSizes(dropout=True, dora=True, modules=((4, 6), (4, 2), (8, 4)), shared=12)


def test_the_bytes_by_hand() -> None:
    """Inputs of 16 and outputs of 12, in 16 bits."""
    assert SIZES.of_a_token(2, "cpu") == 16 * (2 + 2) - 12 * 2 + 2 * 12
    assert SIZES.of_a_token(2, "cuda") == 16 * (2 + 1) - 12 * 2 + 2 * 12
    assert PLAIN.of_a_token(2, "cpu") == 0


class Kept:
    """A tensor that is kept for the backward pass, as long as it is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(folder: Path, layers: int, dtype: torch.dtype, **lora: Any) -> tuple[int, UpdateSizes]:
    """What a forward pass through a small model keeps besides its parameters, and the sizes of its updates."""
    wide = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": layers, "num_key_value_heads": 2}
    config = run_config(**lora)
    plain, loaded = (tiny_loaded(folder, dtype=dtype, num_attention_heads=4, head_dim=64, **wide) for _ in range(2))
    adapted = attach(loaded, config)
    sizes = update_sizes(plain.model, plain.family, adapted.targets, config.lora)
    adapted.set_training(True)
    kept: list[weakref.ref[Kept]] = []

    def keep(tensor: Tensor) -> Kept:
        kept.append(weakref.ref(each := Kept(tensor)))
        return each

    decoder: nn.Module = adapted.model.get_submodule("base_model.model.model")
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each.tensor)
    with hooks, torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        output = decoder(input_ids=torch.arange(TOKENS)[None] % 200)
    storages = {each.tensor.untyped_storage() for reference in kept if (each := reference()) is not None}
    own = {parameter.data_ptr() for parameter in adapted.model.parameters()}
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in storages if storage.data_ptr() not in own), sizes["decoder"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lora", [{"dropout": 0.1, "use_dora": True}, {"dropout": 0.1}, {"use_dora": True}], ids=str)
def test_what_is_kept_more_than_of_plain_updates_is_predicted(
    tmp_path: Path, dtype: torch.dtype, lora: dict[str, Any]
) -> None:
    """Of a layer above the first, whose input needs no gradient. To 3 %: scales and casts are left out."""

    def of_a_layer(**lora: Any) -> tuple[int, UpdateSizes]:
        (less, sizes), (more, _) = (kept_bytes(tmp_path / str(layers), layers, dtype, **lora) for layers in (2, 3))
        return more - less, sizes

    (more, sizes), (plain, _) = of_a_layer(**lora), of_a_layer()
    assert more - plain == pytest.approx(TOKENS * sizes.of_a_token(dtype.itemsize, "cpu"), rel=0.03)

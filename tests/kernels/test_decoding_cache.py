"""A cache with room holds what transformers' cache holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from loraft.kernels.decoding import LEAST_ROOM, PreallocatedKVLayer, name_of_cache, new_cache
from tests.tiny import tiny_model


def states(tokens: int, rows: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 4, generator=generator), torch.randn(rows, 2, tokens, 5, generator=generator)


def same(ours: DynamicLayer, theirs: DynamicLayer) -> bool:
    assert ours.get_seq_length() == theirs.get_seq_length()
    return torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_it_holds_what_transformers_holds() -> None:
    """Through growth beyond its room, selected rows, cut ends and a new beginning."""
    ours, theirs = PreallocatedKVLayer(), DynamicLayer()
    for layer in (ours, theirs):
        for step, tokens in enumerate((5, *[1] * (2 * LEAST_ROOM), 30)):
            layer.update(*states(tokens, seed=step))
    assert same(ours, theirs)
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([2, 0]))
        layer.update(*states(1, rows=2, seed=7))
    assert same(ours, theirs)
    for layer in (ours, theirs):
        layer.crop(-40)
        layer.update(*states(2, rows=2, seed=8))
    assert same(ours, theirs)
    for layer in (ours, theirs):
        layer.reorder_cache(torch.tensor([1, 1]))
        layer.update(*states(1, rows=2, seed=9))
    assert same(ours, theirs)
    for layer in (ours, theirs):
        layer.reset()
        layer.update(*states(3, seed=10))
    assert same(ours, theirs)


def test_it_is_not_copied_with_each_token() -> None:
    layer = PreallocatedKVLayer()
    layer.update(*states(5))
    places = set()
    for _ in range(LEAST_ROOM):
        layer.update(*states(1))
        places.add(layer.keys.data_ptr())
    assert len(places) == 1
    layer.update(*states(1))
    assert layer.keys.data_ptr() not in places


def test_sliding_windows_keep_transformers_layers() -> None:
    model = tiny_model("gemma2")
    ours, theirs = new_cache(model), DynamicCache(config=model.config)
    assert [type(layer) for layer in theirs.layers] == [
        DynamicSlidingWindowLayer,
        DynamicLayer,
        DynamicSlidingWindowLayer,
    ]
    assert [type(layer) for layer in ours.layers] == [
        DynamicSlidingWindowLayer,
        PreallocatedKVLayer,
        DynamicSlidingWindowLayer,
    ]


class _Newer(nn.Module):
    def forward(self, input_ids: Tensor, cache: Cache | None = None) -> None: ...


class _Recurrent(nn.Module):
    def forward(self, input_ids: Tensor, cache_params: Cache | None = None) -> None: ...


class _Unsaid(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("kind", "name"), [(_Newer, "cache"), (_Recurrent, "cache_params"), (_Unsaid, "past_key_values")]
)
def test_a_cache_is_given_by_the_name_that_the_model_has_for_it(kind: type[nn.Module], name: str) -> None:
    """Transformers 5.24 calls it otherwise than those before."""
    assert name_of_cache(kind()) == name

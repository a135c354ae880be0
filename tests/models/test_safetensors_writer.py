"""Safetensors files, written tensor by tensor and read by safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loraft.models.safetensors_index import Slot, in_order, read_headers, write_index, write_shard

TENSORS = {
    "half.é": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "whole": torch.randn(3, 5),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "mask": torch.tensor([True, False, True]),
    "transposed": torch.randn(4, 2).T,
}
WORDS = {torch.bfloat16: "BF16", torch.float32: "F32", torch.bool: "BOOL"}
SLOTS = in_order(Slot(name, WORDS[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items())


def whole(slot: Slot) -> Iterator[torch.Tensor]:
    yield TENSORS[slot.name]


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", SLOTS, whole)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for header in read_headers(tmp_path).values():
        assert header.start % {"F32": 4, "BF16": 2, "BOOL": 1}[header.dtype] == 0, "every tensor is aligned"


def test_pieces_are_put_together(tmp_path: Path) -> None:
    tensor = TENSORS["whole"]
    write_shard(tmp_path / "model.safetensors", [Slot("whole", "F32", (3, 5))], lambda _: iter(tensor))
    assert torch.equal(load_file(tmp_path / "model.safetensors")["whole"], tensor)


@pytest.mark.parametrize("rows", [2, 4])
def test_too_few_or_too_many_numbers_are_an_error(tmp_path: Path, rows: int) -> None:
    with pytest.raises(ValueError, match="has room for 60 bytes"):
        write_shard(tmp_path / "x.safetensors", [Slot("a", "F32", (3, 5))], lambda _: iter(torch.ones(rows, 5)))


def test_an_index_is_the_one_that_is_read(tmp_path: Path) -> None:
    for name, slot in (("one", SLOTS[0]), ("two", SLOTS[1])):
        write_shard(tmp_path / f"{name}.safetensors", [slot], whole)
    write_index(tmp_path, {SLOTS[1].name: "two.safetensors", SLOTS[0].name: "one.safetensors"}, 72)
    assert read_headers(tmp_path).keys() == {SLOTS[0].name, SLOTS[1].name}
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"] == {"total_size": 72}

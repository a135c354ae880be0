"""Numbers in each type: what ggml reads back, and what a type cannot hold is no file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

from loraft import api
from loraft.errors import NonFiniteError
from loraft.exporting.gguf_tensors import SIXTEEN_BITS, GgufTensor, OutType, ggml_type, in_pairs
from tests.merging.merging import save_base
from tests.tiny import save_tiny, with_head_apart
from tests.words import Wording

STEPS = {
    "f32": 0.0,
    "f16": 2**-11,
    "bf16": 2**-8,
    "q8_0": 1 / 127,
    "q5_1": 1 / 15,
    "q5_0": 1 / 8,
    "q4_1": 1 / 7,
    "q4_0": 1 / 4,
}
"""How far a number may be moved, as a share of the largest of its block."""
WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("kind", get_args(OutType))
def test_ggml_reads_the_numbers_back(kind: OutType) -> None:
    numbers = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    tensor = GgufTensor("blk.0.ffn_up.weight", (6, 64), kind)
    written = b"".join(tensor.encoded(numbers.split(4)))
    assert len(written) == tensor.num_bytes
    raw = torch.frombuffer(bytearray(written), dtype=torch.uint8)
    if (plain := SIXTEEN_BITS.get(kind)) is not None:
        read = raw.view(plain).float()
    else:
        read = torch.tensor(dequantize(raw.numpy(), ggml_type(kind)))
    assert float((read.view(6, 64) - numbers).abs().max()) <= STEPS[kind] * float(numbers.abs().max())


def test_a_head_that_the_files_have_apart_is_written(tmp_path: Path) -> None:
    """A file without it is of a model whose head is its embeddings."""
    head = with_head_apart(save_tiny(tmp_path / "base", tie_word_embeddings=True))
    api.export(str(tmp_path / "base"), tmp_path / "base.gguf", outtype="f32")
    written = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(tmp_path / "base.gguf").tensors}
    assert torch.equal(written["output.weight"], head)
    assert torch.equal(written["token_embd.weight"], -head)


def test_rows_of_both_halves_of_a_head_come_in_turn() -> None:
    rows = torch.arange(8)[:, None]  # two heads of four
    assert in_pairs(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("q8_0", "nan"),
        ("f16", "7e4"),
        ("q4_0", "1e7"),
        ("f32", "nan"),
        ("bf16", "inf"),
        ("q8_0", "1e7"),
        ("q4_1", "7e4"),
    ],
)
def test_a_number_that_a_type_cannot_hold_leaves_the_file_that_was_there(
    tmp_path: Path, kind: OutType, number: str, wording: Wording
) -> None:
    save_base(tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    weights[WEIGHT][0, 0] = float(number)
    save_file(weights, tmp_path / "base/model.safetensors", {"format": "pt"})
    (tmp_path / "out.gguf").write_text("before")
    with pytest.raises(NonFiniteError) as caught:
        api.export(str(tmp_path / "base"), tmp_path / "out.gguf", outtype=kind, overwrite=True)
    wording(str(caught.value))
    assert (tmp_path / "out.gguf").read_text() == "before"
    assert [each.name for each in tmp_path.iterdir() if "partial" in each.name] == []

"""Files to which each rank writes its rows: read by any number of ranks, and by torch's distributed checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from loraft.distributed.part_files import PartFiles, restore_rows, write_parts
from loraft.distributed.ranks import ALONE, Ranks
from loraft.errors import AdapterError
from tests.distributed.forked import forked

NUMBERS = {
    "matrix": torch.arange(21, dtype=torch.float32).reshape(7, 3),
    "vector": torch.arange(5, dtype=torch.bfloat16),
    "one row": torch.arange(4, dtype=torch.float32).reshape(1, 4),
    "number": torch.tensor(3.0),
}


def placed(ranks: Ranks, like: bool = False) -> dict[str, Tensor]:
    """The tensors in as many parts as there are ranks; what is only `like` them has other numbers."""
    given = {name: torch.zeros_like(each) if like else each for name, each in NUMBERS.items()}
    if ranks.world == 1:
        return given
    mesh = init_device_mesh("cpu", (ranks.world,))
    return {name: distribute_tensor(each, mesh, [Shard(0)]) if each.dim() else each for name, each in given.items()}


def whole(tensor: Tensor) -> Tensor:
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


@pytest.mark.parametrize("world", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_what_some_ranks_write_others_read(tmp_path: Path, world: int) -> None:
    """Three ranks have three, three and one rows of seven, and two of them none of a single one."""

    def write(ranks: Ranks) -> list[Path]:
        return write_parts(tmp_path, "model", placed(ranks), ranks)

    files = [file for each in forked(world, write) if isinstance(each, list) for file in each]
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert len(files) == world

    def read(ranks: Ranks) -> bool:
        found = PartFiles(files)
        assert found.names == NUMBERS.keys()
        values = {name: found.read(name, like) for name, like in placed(ranks, like=True).items()}
        return all(whole(value).equal(NUMBERS[name]) for name, value in values.items())

    assert read(ALONE)
    for readers in (2, 4) if world > 1 else ():
        assert forked(readers, read) == [True] * readers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_torchs_distributed_checkpoint_reads_them(tmp_path: Path) -> None:
    forked(2, lambda ranks: write_parts(tmp_path, "model", placed(ranks), ranks))
    import torch.distributed.checkpoint as dcp

    found = placed(ALONE, like=True)
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(found[name].equal(NUMBERS[name]) for name in NUMBERS)


def test_files_of_whole_tensors_are_read_too_and_what_is_lost_is_told(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"matrix": NUMBERS["matrix"]}, file)
    found = PartFiles([file])
    assert found.read("matrix").equal(NUMBERS["matrix"])
    with pytest.raises(AdapterError, match=r"is \[7, 3\], and the model has \[7, 4\]"):
        restore_rows({"matrix": nn.Parameter(torch.zeros(7, 4))}, found)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(AdapterError, match="cannot be read"):
        PartFiles([file])


@pytest.mark.slow
def test_rows_that_no_file_has_are_told(tmp_path: Path) -> None:
    forked(3, lambda ranks: write_parts(tmp_path, "model", placed(ranks), ranks))
    first, _, last = sorted(tmp_path.iterdir())
    with pytest.raises(AdapterError, match="lacks rows of matrix from the number 3 on"):
        PartFiles([first, last]).read("matrix")
    assert load_file(first)["matrix"].shape == (3, 3)

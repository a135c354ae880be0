"""Memory that runs out, and a disk that is too small, as one error with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraft.errors import OutOfMemoryError, ResourceError
from loraft.io.resources import memory_errors, require_free_bytes


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError(
            "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["python", "device", "cpu", "cuda", "driver", "triton", "nccl", "cublas"],
)
def test_whoever_says_it(error: Exception) -> None:
    with pytest.raises(OutOfMemoryError, match=r"^out\n  Do less\.$"), memory_errors("out", remedy="Do less."):
        raise error


def test_what_was_told_stays_unless_the_caller_knows_better() -> None:
    for rewords, said in ((False, "first"), (True, "second")):
        with pytest.raises(OutOfMemoryError, match=said), memory_errors("second", remedy=None, rewords=rewords):
            raise OutOfMemoryError("first")


@pytest.mark.parametrize("rewords", [False, True])
def test_all_else_passes(rewords: bool) -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("out", remedy=None, rewords=rewords):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("folder", [".", "not/there"])
def test_a_disk_that_is_too_small_is_told_by_a_folder_that_is_found_again(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResourceError) as told:
        require_free_bytes(Path(folder), 2**80, "all of it")
    assert told.value.problems[0].where == str(tmp_path)

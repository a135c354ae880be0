"""Memory that runs out, as one error with a remedy."""

from __future__ import annotations

import pytest
import torch

from loraft.errors import OutOfMemoryError
from loraft.io.resources import memory_errors


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

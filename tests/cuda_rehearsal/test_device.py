"""The device that computes nothing, asked directly: what is a wait, what is a copy, what is held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_rehearsal.seen_once import ROOT

pytestmark = pytest.mark.slow

PROBE = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])
import torch
from tests.cuda_rehearsal.device import rehearsal
from tests.cuda_rehearsal.pretend import leave, pretend
pretend()
counts = []
def counted(ledger, act):
    with ledger.since() as found:
        act()
    return sum(found.waits.values()), sum(found.copies.values()), sum(found.launches.values())
with rehearsal() as ledger:
    x = torch.ones(4, 8, device="cuda")
    held = ledger.live
    w = torch.randn(8, 8, device="cuda", requires_grad=True)
    mask = torch.tensor([True, False, True, True]).pin_memory().to("cuda", non_blocking=True)
    print(counted(ledger, lambda: (x @ w).sum().backward()))
    print(counted(ledger, lambda: x.sum().item()))
    print(counted(ledger, lambda: x.tolist()))
    print(counted(ledger, lambda: torch.ones(3).to("cuda")))
    print(counted(ledger, lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True)))
    print(counted(ledger, lambda: torch.ones(3).to("cuda", non_blocking=True)))
    print(counted(ledger, lambda: x[mask]), x[mask].shape[0])
    print(counted(ledger, lambda: torch.multinomial(x, 1)))
    before = ledger.live
    y = x * 2
    print(ledger.live - before, end=" ")
    del y
    print(ledger.live - before)
leave()
"""
TOLD = ["item", "tolist", "a copy", "a copy from pinned memory", "one that is not pinned", "a mask", "a draw", "memory"]


def test_what_waits_what_copies_and_what_is_held(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(library)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step, *lines = done.stdout.splitlines()
    assert step.startswith("(0, 0, ")
    waited = dict(zip(TOLD, lines, strict=True))
    assert waited["item"].startswith("(1, 0")
    assert waited["tolist"].startswith("(1, 0")
    assert waited["a copy"].startswith("(0, 1")
    assert waited["a copy from pinned memory"].startswith("(0, 0")
    assert waited["one that is not pinned"].startswith("(0, 1")
    assert waited["a mask"].startswith("(1, 0")
    assert waited["a mask"].endswith(" 3")
    assert waited["a draw"].startswith("(1, 0")
    assert waited["memory"] == "128 0"

"""How many launches a token of an answer takes, one by one and as a graph, and what the host waits for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_rehearsal.seen_once import ROOT

pytestmark = pytest.mark.slow

FEW = 30
"""Launches of a token with a graph: it, what goes into it, and the choice of the token."""
FIRST, TRIED = 3, 2
"""Tokens until the record is launched, and the one that it is tried on, for which is waited once more."""


def test_a_token_is_one_graph_and_one_wait(library: Path) -> None:
    command = [sys.executable, "-m", "tests.cuda_rehearsal.token_launches", str(library)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, counted in json.loads(done.stdout.splitlines()[-1]).items():
        single, graph = counted["launches"], counted["graph"]
        print(f"{kind}: {single['launches'][-1]} launches a token, {graph['launches'][-1]} with a graph")
        assert set(single["waits"]) == {1}
        assert [waits for place, waits in enumerate(graph["waits"]) if place != FIRST] == [1] * 11
        assert graph["waits"][FIRST] <= TRIED
        assert max(graph["launches"][FIRST + 1 :]) <= FEW < min(single["launches"])
        assert not any(graph["copies"][1:])

"""The benchmark of a GPU over a tiny model: each kind of piece runs there, under its cap on memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent.parent


def test_each_kind_of_piece_tells_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    words = ["--tiny", "--steps=3", "--warm-up=1", f"--json={path}", "qlora-8b", "4gb-8b", "row-8gb", "48gb-70b"]
    command = [sys.executable, str(ROOT / "scripts/benchmark_gpu.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = {line["measured"].rpartition(", within ")[2] for line in lines if line["unit"] == "GB"}
    assert {"4 GB: peak memory", "48 GB: peak memory"} <= told
    assert any(" trained within 8 GB" in line["measured"] for line in lines)
    assert all(line["value"] > 0 for line in lines)

"""What a process of its own sees of the device that computes nothing, made once for all processes of the session."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parents[2]


def written_once(file: Path, module: str, library: Path, words: Sequence[str]) -> dict[str, Any]:
    """The JSON that `python -m MODULE LIBRARY FILE WORD…` writes, where it is not there already."""
    growing = file.with_suffix(".growing.json")
    with FileLock(f"{file}.lock"):
        if not file.exists():
            command = [sys.executable, "-m", module, str(library), str(growing), *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            growing.rename(file)
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

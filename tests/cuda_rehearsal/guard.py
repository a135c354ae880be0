"""The part of the device that is written in C++: what autograd asks of CUDA, built once against torch's headers."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import torch
from filelock import FileLock

SOURCE = Path(__file__).with_name("guard.cpp")


def unavailable() -> str | None:
    """Why there can be no such device here; None where there can."""
    if torch.version.cuda is not None:
        return f"the rehearsal takes the place of CUDA, and torch {torch.__version__} is built with it"
    if shutil.which("g++") is None:
        return "the rehearsal is built with g++, which is not here (apt-get install g++)"
    return None


def built(folder: Path) -> Path:
    """The library, built in `folder` unless another process has done so."""
    made_of = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    library = folder / f"guard-{made_of}.so"
    with FileLock(folder / f"{library.name}.lock"):
        if not library.exists():
            here = Path(torch.__file__).parent
            command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", str(SOURCE), f"-I{here / 'include'}"]
            command += [f"-L{here / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{here / 'lib'}", "-o", str(library)]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return library

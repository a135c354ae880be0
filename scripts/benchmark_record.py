"""The file of figures that benchmarks add to with `--json FILE`: a line of JSON for each, as in docs/benchmarks.jsonl.

A line says when and on what machine (`date`, `machine`), with what (`versions`, `commit` of loraft's checkout,
`command`), what was measured (`measured`, `unit`, `value`), and what it is compared with (`peer`, `peer_value`; `ratio`
is loraft's over the peer's). What is not known is null.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from loraft.version import version_of

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs/benchmarks.jsonl"
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes")
DIGITS = 4
"""Significant ones: no figure here is more certain."""


@dataclass(frozen=True)
class Figure:
    """What was measured once.

    Attributes:
        measured: What it is, in words that name the same thing each time.
        unit: Of `value` and `peer_value`; bytes are told in GB of 10^9, the processor's time as "processor s".
        value: loraft's.
        peer: The program, or the other way of doing it, that it is compared with.
        peer_value: The same of the peer.
        ratio: loraft's over the peer's: a median of ratios where there are several, else that of the two values.
    """

    measured: str
    unit: str
    value: float | int
    peer: str | None = None
    peer_value: float | int | None = None
    ratio: float | None = None


def gigabytes(measured: str, held: float, peer: str | None = None, of_peer: float | None = None) -> Figure:
    """A figure of memory, from bytes."""
    return Figure(measured, "GB", held / 1e9, peer, None if of_peer is None else of_peer / 1e9)


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark."""
    told = "append each figure there, a line of JSON each, as docs/benchmarks.jsonl has them"
    parser.add_argument("--json", type=record_file, metavar="FILE", help=told)


def record_file(text: str) -> Path:
    """A file that lines can be appended to; refused before anything is measured where it cannot be."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder, not a file")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}: make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def record(
    path: Path | None, figures: Iterable[Figure], *, packages: Sequence[str] = (), machine: str | None = None
) -> None:
    """Append figures to a file, where one is named, as of now and of this machine; `packages` are the peers'."""
    if path is None:
        return
    said = {
        "date": date.today().isoformat(),
        "machine": machine or cpu(),
        "versions": {name: found for name in (*VERSIONS, *packages) if (found := installed(name))},
        "commit": commit(),
        "command": command(sys.argv),
    }
    with path.open("a", encoding="utf-8") as file:
        for figure in figures:
            file.write(json.dumps(said | rounded(figure), ensure_ascii=False) + "\n")


def rounded(figure: Figure) -> dict[str, object]:
    """The fields of a figure, with the ratio."""
    ratio = figure.ratio
    if ratio is None and figure.peer_value:
        ratio = figure.value / figure.peer_value
    found = asdict(figure) | {"ratio": ratio}
    return {
        name: float(f"{each:.{DIGITS}g}") if isinstance(each, float) else each for name, each in found.items()
    }  # a float of many digits keeps four; a count stays whole


def installed(package: str) -> str | None:
    """A package's version, or none where it is not installed."""
    try:
        return version_of(package)
    except PackageNotFoundError:
        return None


def cpu() -> str:
    """The processor, and how many threads torch may take."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return f"{named[1] if named else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; none outside of one."""
    told = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(told, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def command(words: Sequence[str]) -> str:
    """The script and its options, but the file that figures are written to."""
    said = shlex.join([f"scripts/{Path(words[0]).name}", *words[1:]])
    return re.sub(r" --json[ =]\S+", "", said)


def recorded(path: Path = RECORD) -> list[dict[str, object]]:
    """Every line of a file, the oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

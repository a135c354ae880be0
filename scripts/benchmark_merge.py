"""loraft against peft: the same adapter merged into the same base and saved, seconds and peak memory of both.

    .venv/bin/python scripts/benchmark_merge.py

SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, in the dtype of the base's files and in bfloat16. peft loads
the model, calls `merge_and_unload` and `save_pretrained`; loraft merges from files to files. Beside them the base's
files are copied, for how fast the disk is. Each run is a process of its own, and the three take turns. The seconds are
those of the work, from the first read to the last byte on the disk; imports are left out. Memory is what the process
held at most: all of it, and the part that is not a file's (RssAnon, sampled), which alone counts where memory is short.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from benchmark_record import Figure, add_option, gigabytes, record

MODEL = "builtin:smollm2-135m-instruct"
RANK = 16
ALPHA = 32
WORKERS = ("peft", "loraft", "copy")


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        seconds: The work, until its last byte is on the disk.
        peak_bytes: The most memory that the process held.
        peak_anonymous_bytes: The most of it that is not a file's.
    """

    seconds: float
    peak_bytes: int
    peak_anonymous_bytes: int


def main() -> None:
    """Make an adapter, let the three take turns, and print the medians and their ratios."""
    arguments = parsed()
    if arguments.worker:
        work(arguments.worker, Path(arguments.base), Path(arguments.adapter), Path(arguments.out), arguments.dtype)
        return
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = prepare(Path(folder))
        runs = {dtype: {name: [] for name in WORKERS} for dtype in ("float32", "bfloat16")}  # type: dict[str, dict[str, list[Measured]]]
        for _ in range(arguments.repeat):
            for dtype, of_dtype in runs.items():
                for name in WORKERS:
                    of_dtype[name].append(measured(name, base, adapter, Path(folder) / "out", dtype))
    report = {dtype: summary(of_dtype) for dtype, of_dtype in runs.items()}
    print_report(report, arguments.repeat)
    record(arguments.json, figures(report))


def parsed() -> argparse.Namespace:
    """The command line: what a person says, and what this script says to its own processes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each (default 3)")
    add_option(parser)
    for name in ("--worker", "--base", "--adapter", "--out", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(folder: Path) -> tuple[Path, Path]:
    """The base's folder, and an adapter with an effect as peft saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from loraft.models.sources import resolve

    base = resolve(MODEL)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


def measured(name: str, base: Path, adapter: Path, out: Path, dtype: str) -> Measured:
    """One run in a process of its own, with its anonymous memory sampled from here."""
    words = ["--worker", name, "--base", str(base), "--adapter", str(adapter), "--out", str(out), "--dtype", dtype]
    peak = 0
    with subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.005)
        assert process.stdout is not None
        found = json.loads(process.stdout.read().splitlines()[-1])
    shutil.rmtree(out)
    return Measured(found["seconds"], found["peak_bytes"], peak)


def anonymous_bytes(pid: int) -> int:
    """What a process holds that is not a file's; none once it has ended, or where there is no /proc."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def work(name: str, base: Path, adapter: Path, out: Path, dtype: str) -> None:
    """Do the work of one, and print what it took."""
    does = {"peft": by_peft, "loraft": by_loraft, "copy": by_copying}[name](base, adapter, out, dtype)
    began = time.perf_counter()
    does()
    for file in out.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """The most memory this process ever held; Linux' own count of it (getrusage begins with the parent's)."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def by_peft(base: Path, adapter: Path, out: Path, dtype: str) -> Callable[[], None]:
    """As peft's documentation has it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def merge() -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)

    return merge


def by_loraft(base: Path, adapter: Path, out: Path, dtype: str) -> Callable[[], None]:
    """Without verification, which peft has none of."""
    from loraft.api import merge

    import_module("loraft.merging.equivalence")  # what the verb imports when it is called is not timed

    return lambda: merge(str(adapter), out, dtype=dtype, base_model=str(base), verified=False)


def by_copying(base: Path, _adapter: Path, out: Path, _dtype: str) -> Callable[[], None]:
    """The files of the base, as they are: in float32 as many bytes as the merge writes."""
    return lambda: shutil.copytree(base, out)


def summary(runs: dict[str, list[Measured]]) -> dict[str, object]:
    """Every figure, with the medians and their ratios."""
    median = {
        name: {key: statistics.median(asdict(run)[key] for run in of_one) for key in asdict(of_one[0])}
        for name, of_one in runs.items()
    }
    return {
        "runs": {name: [asdict(run) for run in of_one] for name, of_one in runs.items()},
        "median": median,
        "seconds_ratio_to_peft": median["loraft"]["seconds"] / median["peft"]["seconds"],
        "memory_ratio_to_peft": median["loraft"]["peak_bytes"] / median["peft"]["peak_bytes"],
        "anonymous_memory_ratio_to_peft": (
            median["loraft"]["peak_anonymous_bytes"] / median["peft"]["peak_anonymous_bytes"]
        ),
        "speed_ratio_to_copying": median["copy"]["seconds"] / median["loraft"]["seconds"],
    }


def figures(report: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[Figure]:
    """What a run of this script adds to a file of figures."""
    found = []
    for dtype, of_dtype in report.items():
        name = f"merging in {dtype}"
        ours, theirs, copying = (of_dtype["median"][worker] for worker in ("loraft", "peft", "copy"))
        found.append(Figure(name, "s", ours["seconds"], "peft", theirs["seconds"]))
        found.append(gigabytes(f"{name}: peak memory", ours["peak_bytes"], "peft", theirs["peak_bytes"]))
        anonymous = "peak_anonymous_bytes"
        found.append(gigabytes(f"{name}: anonymous memory", ours[anonymous], "peft", theirs[anonymous]))
        if dtype == "float32":
            found.append(Figure(f"{name}, beside copying", "s", ours["seconds"], "a copy", copying["seconds"]))
    return found


def print_report(report: dict[str, dict[str, object]], repeat: int) -> None:
    """The table that a person reads."""
    print(f"SmolLM2-135M-Instruct, LoRA r={RANK} on all linear layers; medians of {repeat} runs each")
    for dtype, found in report.items():
        print(f"\n{dtype:10}{'seconds':>10}{'peak MB':>10}{'anonymous MB':>14}")
        for name, median in found["median"].items():  # type: ignore[attr-defined]
            peak, anonymous = median["peak_bytes"] / 1e6, median["peak_anonymous_bytes"] / 1e6
            print(f"{name:10}{median['seconds']:10.2f}{peak:10.0f}{anonymous:14.0f}")
        print(
            f"loraft / peft: {found['seconds_ratio_to_peft']:.2f} of the time, {found['memory_ratio_to_peft']:.2f} of "
            f"the memory, {found['anonymous_memory_ratio_to_peft']:.2f} of the anonymous memory"
        )
        if dtype == "float32":
            print(f"loraft against copying as many bytes: {found['speed_ratio_to_copying']:.2f} of the speed")


if __name__ == "__main__":
    main()

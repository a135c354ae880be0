"""loraft on a CUDA GPU against TRL and Unsloth: tokens a second, peak memory, and the longest row that a memory holds.

    python scripts/benchmark_gpu.py --json docs/benchmarks.jsonl
    python scripts/benchmark_gpu.py qlora-8b row-24gb --folder /data/models

Models of random weights have the geometry of Llama-3.1-8B, Llama-2-7B and Llama-2-70B, and a tokenizer that is made
up, so that no network is needed. Pieces run in the order below, each part of one in a process of its own, and each
figure is told and written as soon as it is there. A piece that fails says why, and the next one begins; the exit code
is then 3.

`qlora-…` and `lora-…`: rank 32 on all linear layers, rows of mixed lengths packed into lines of 2,048 tokens, a line a
step, bfloat16, fused AdamW, no gradient checkpointing. TRL's SFTTrainer (with Liger's kernels where they are installed,
by each attention that is there) and Unsloth, where installed, train on the same rows in the same steps. The rate is by
the clock from the end of the steps that warm up to the end of the last one; the peak is what torch holds at most while
training. Utilisation is the operations that the tokens need, computed once (`operations` in benchmark_gpu_models.py:
four a frozen number and token, six a number of A and B, causal attention), beside a square product in bfloat16 in the
same run.

`4gb-8b`: `stream_layers` and `gradient_checkpointing: offload`, rank 16, as in configs/qlora-8b-4gb.yaml. `row-…`: one
step of one row, rank 32, adamw_8bit, offload, tiled_mlp; the row is the longest that the plan has room for and that
takes no more than `--seconds` by estimate (it is not called the longest where those decide), shorter each time that it
does not fit. `48gb-70b`: rank 16, the layers' frozen matrices zeros, which take no disk: its memory is told and no
time. Memory is capped by torch's own limit on the process, less what CUDA takes for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmark_gpu_models import (
    COMPLETE,
    GEOMETRIES,
    MOST_TOKENS,
    TINY,
    mixed_lengths,
    operations,
    seconds_of_row,
    write_rows,
)
from benchmark_record import Figure, add_option, gigabytes, record, rounded

from loraft.version import __version__

WORKERS = Path(__file__).parent / "benchmark_gpu_workers.py"
TITLES = {"llama-3.1-8b": "Llama-3.1-8B", "llama-2-7b": "Llama-2-7B", "llama-2-70b": "Llama-2-70B"}
RANK = 32
PUBLISHED = {8: 2972, 16: 40724, 24: 78475, 40: 153977, 80: 342733}
"""The longest rows of Llama-3.1-8B by QLoRA of rank 32, by GB: docs.unsloth.ai/basics/unsloth-benchmarks."""
LONGER = 8
"""The longest row that is planned, as a multiple of the published one."""
SCALES = (1, 0.95, 0.9, 0.8, 0.7)
"""What share of the planned row is tried, one after the other: the plan counts no gaps between tensors."""
NO_GPU = "this machine has no CUDA GPU, and these figures are of one; `--tiny --device cpu` tries the script itself"


class PieceError(Exception):
    """A part of a piece failed; the words say why."""


@dataclass
class Bench:
    """What the pieces share.

    Attributes:
        rate: The operations a second of a square product, once it is measured.
        machine: The GPU's name; none is the CPU's.
    """

    options: argparse.Namespace
    folder: Path
    rate: float = 0.0
    machine: str | None = None
    failed: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Of a line."""
        return 64 if self.options.tiny else 2048

    def sizes(self, model: str) -> dict[str, Any]:
        """The geometry of a model, or the tiny one in its place."""
        return TINY if self.options.tiny else GEOMETRIES[model]

    def title(self, model: str) -> str:
        """What figures call a model."""
        return "a tiny model" if self.options.tiny else TITLES[model]

    def tell(self, *figures: Figure, packages: tuple[str, ...] = ()) -> None:
        """Print figures, and write them."""
        for figure in figures:
            said = rounded(figure)
            beside = f", {said['peer']} {said['peer_value']:g}: {said['ratio']:.3g} of it" if figure.peer else ""
            print(f"{said['measured']}: {said['value']:g} {said['unit']}{beside}", flush=True)
        record(self.options.json, figures, packages=packages, machine=self.machine)

    def work(self, kind: str, **job: Any) -> dict[str, Any]:
        """A job in a process of its own, and what it found."""
        given, out = self.folder / "job.json", self.folder / "found.json"
        given.write_text(json.dumps({"kind": kind} | job))
        out.unlink(missing_ok=True)
        command = [sys.executable, str(WORKERS), str(given), str(out)]
        said = {**os.environ, "HF_HUB_OFFLINE": "1", "LORAFT_CACHE": str(self.folder / "cache")}
        how: dict[str, Any] = {"capture_output": True, "text": True, "env": said}
        try:
            done = subprocess.run(command, check=False, timeout=self.options.limit, **how)
        except subprocess.TimeoutExpired:
            raise PieceError(f"{kind} took more than {self.options.limit} s (--limit)") from None
        if done.returncode or not out.is_file():
            last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-4:]
            raise PieceError(f"{kind} ended with {done.returncode}: " + "\n    ".join(last))
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    def model(self, name: str, *, hollow: bool = False) -> str:
        """The folder of a model, which is written the first time; with the first one a product is measured."""
        folder = str(self.folder / (f"tiny-{name}" if self.options.tiny else name))
        if self.rate and (Path(folder) / COMPLETE).exists():
            return folder
        side = 8192 if self.options.device == "cuda" else 256
        job = {"folder": folder, "sizes": self.sizes(name), "device": self.options.device, "hollow": hollow}
        found = self.work("prepare", side=side, **job)
        if not self.rate:
            self.rate, self.machine = found["rate"], found["device"]
            self.tell(Figure(f"a product of {side} x {side} matrices in bfloat16", "TFLOP/s", self.rate / 1e12))
        return folder

    def config(self, method: str, folder: str, rows: Path, **keys: Any) -> dict[str, Any]:
        """A run of loraft; keys are those of `training`, but `rank`, `stream` and `packing`."""
        rank, stream, packing = keys.pop("rank", RANK), keys.pop("stream", False), keys.pop("packing", "auto")
        return {
            "method": method,
            "model": {"name_or_path": folder, "dtype": "bfloat16", "stream_layers": stream},
            "lora": {"r": rank, "alpha": rank, "target_modules": "all-linear"},
            "data": {
                "train": str(rows), "eval": None, "format": "text", "packing": packing,
                "max_length": self.tokens if packing == "fill" else 2**20, "shared_prefix": "off",
            },
            "training": {
                "output_dir": str(self.folder / "run"), "per_device_train_batch_size": 1, "learning_rate": 1e-4,
                "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1, "num_train_epochs": 1, **keys,
            },
        }  # fmt: skip


def speed(bench: Bench, method: str, model: str) -> None:
    """Loraft on packed lines, then the peers on the same."""
    options, rows, kept = bench.options, bench.folder / "rows.jsonl", str(bench.folder / "steps.json")
    folder, device, sizes = bench.model(model), options.device, bench.sizes(model)
    write_rows(rows, sizes["vocab_size"], mixed_lengths(bench.tokens, options.steps))
    keys = {"max_steps": options.steps, "optim": "adamw", "gradient_checkpointing": False, "packing": "fill"}
    shared = {"device": device, "warm_up": options.warm_up, "keep": kept}
    ours = bench.work("loraft", config=bench.config(method, folder, rows, **keys), **shared)
    name = f"{'QLoRA' if method == 'qlora' else 'LoRA'} r {RANK}, {bench.title(model)}, {bench.tokens:,} tokens packed"
    rate = ours["tokens"] / ours["seconds"]
    used = operations(sizes, RANK, ours["lengths"]) / ours["seconds"]
    said = "a product in bfloat16"
    bench.tell(
        Figure(name, "tokens/s", rate),
        Figure(f"{name}: operations", "TFLOP/s", used / 1e12, said, bench.rate / 1e12),
        gigabytes(f"{name}: peak memory", ours["peak_bytes"]),
        gigabytes(f"{name}: predicted memory", ours["predicted_bytes"], "held", ours["peak_bytes"]),
    )
    job = shared | {"folder": folder, "method": method, "rank": RANK}
    for peer, kind, package in (("TRL's SFTTrainer", "trl", "trl"), ("Unsloth", "unsloth", "unsloth")):
        if not find_spec(package):
            print(f"{package} is not installed: {name} stands without it", flush=True)
            continue
        theirs = fastest(bench, peer, kind, job)
        of_peer = theirs["tokens"] / theirs["seconds"]
        figures = [
            Figure(name, "tokens/s", rate, peer, of_peer),
            gigabytes(f"{name}: peak memory", ours["peak_bytes"], peer, theirs["peak_bytes"]),
        ]
        bench.tell(*figures, packages=(package, "liger-kernel"))
        print(f"  mean loss: loraft {ours['loss']:.3f}, {peer} {theirs['loss']:.3f}", flush=True)


def fastest(bench: Bench, peer: str, kind: str, job: dict[str, Any]) -> dict[str, Any]:
    """A peer by each attention that is there, TRL's to be chosen; the fastest run counts."""
    settings = ["sdpa", *(["flash_attention_2"] if kind == "trl" and find_spec("flash_attn") else [])]
    runs = []
    for setting in settings:
        try:
            runs.append(bench.work(kind, setting=setting, **job))
        except PieceError as error:
            bench.failed.append(peer)
            print(f"{peer} with {setting}: {error}", file=sys.stderr, flush=True)
    if not runs:
        raise PieceError(f"{peer} did not run")
    return max(runs, key=lambda run: run["tokens"] / run["seconds"])


def small(bench: Bench, model: str, memory: int, *, timed: bool, **keys: Any) -> None:
    """A few steps of QLoRA r 16 within a memory."""
    rows, folder = bench.folder / "rows.jsonl", bench.model(model, hollow=not timed)
    steps = 4 if timed else 2
    write_rows(rows, bench.sizes(model)["vocab_size"], mixed_lengths(bench.tokens, steps))
    config = bench.config("qlora", folder, rows, rank=16, packing="fill", max_steps=steps, **keys)
    found = bench.work("loraft", config=config, device=bench.options.device, warm_up=1, gigabytes=memory)
    name = f"QLoRA r 16, {bench.title(model)}, {bench.tokens:,} tokens packed, within {memory} GB"
    bench.tell(gigabytes(f"{name}: peak memory", found["peak_bytes"]))
    if timed:
        bench.tell(Figure(name, "tokens/s", found["tokens"] / found["seconds"]))


def row(bench: Bench, memory: int) -> None:
    """The longest row within a memory; shorter after each time that it did not fit."""
    model, options = "llama-3.1-8b", bench.options
    folder, sizes, published = bench.model(model), bench.sizes(model), PUBLISHED[memory]
    most = 2 * bench.tokens if options.tiny else min(LONGER * published, MOST_TOKENS)
    while seconds_of_row(sizes, RANK, most, bench.rate / 2) > options.seconds:
        most = int(most * 0.95)
    keys = {"optim": "adamw_8bit", "gradient_checkpointing": "offload", "tiled_mlp": True, "max_steps": 1}
    rows = bench.folder / "row.jsonl"
    job = {
        "config": bench.config("qlora", folder, rows, **keys), "rows": str(rows), "sizes": sizes,
        "device": options.device, "gigabytes": memory, "most": most,
    }  # fmt: skip
    for scale in SCALES:
        found = bench.work("row", scale=scale, **job)
        if "failed" not in found:
            break
        print(f"{found['tokens']:,} tokens in {memory} GB: {found['failed']}", file=sys.stderr, flush=True)
    else:
        raise PieceError(f"no row of {len(SCALES)} fitted in {memory} GB")
    what = "longest row" if found["planned"] < most else "a row (longer ones were not tried)"
    how = f"{bench.title(model)}, QLoRA r {RANK}, adamw_8bit, offload, tiled_mlp"
    name = f"{what} trained within {memory} GB, {how}"
    figure = Figure(name, "tokens", found["tokens"])
    if not options.tiny:
        figure = replace(figure, peer="Unsloth, published", peer_value=published)
    bench.tell(figure, gigabytes(f"{name}: peak memory", found["peak_bytes"]))


FED = {"stream": True, "gradient_checkpointing": "offload", "optim": "adamw_8bit"}
PAGED = {"gradient_checkpointing": True, "optim": "paged_adamw_32bit"}
PIECES: dict[str, Callable[[Bench], None]] = {
    "qlora-8b": partial(speed, method="qlora", model="llama-3.1-8b"),
    "lora-8b": partial(speed, method="lora", model="llama-3.1-8b"),
    "4gb-8b": partial(small, model="llama-3.1-8b", memory=4, timed=True, **FED),
    **{f"row-{memory}gb": partial(row, memory=memory) for memory in (8, 16, 24)},
    "qlora-7b": partial(speed, method="qlora", model="llama-2-7b"),
    "lora-7b": partial(speed, method="lora", model="llama-2-7b"),
    "48gb-70b": partial(small, model="llama-2-70b", memory=48, timed=False, **PAGED),
    **{f"row-{memory}gb": partial(row, memory=memory) for memory in (40, 80)},
}
"""From what tells most in little time to what takes longest."""


def main() -> None:
    """Run the pieces that are asked for; the exit code is 3 where one failed and 2 without a GPU."""
    options = parse_options()
    if options.device == "cuda" and not has_gpu():
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    print(f"loraft {__version__}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options, options.folder or Path(name))
        for piece in options.pieces or PIECES:
            try:
                PIECES[piece](bench)
            except PieceError as error:
                bench.failed.append(piece)
                print(f"{piece} failed: {error}", file=sys.stderr, flush=True)
    if bench.failed:
        print(f"failed: {', '.join(bench.failed)}", file=sys.stderr)
        sys.exit(3)


def has_gpu() -> bool:
    """Whether torch finds one; asked in another process, so that this one takes none of its memory."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False, capture_output=True).returncode == 0


def parse_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = f"what to measure, all in this order where none is named: {', '.join(PIECES)}"
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=told)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a run [default: 20]")
    parser.add_argument("--warm-up", type=int, default=5, help="of these not timed [default: 5]")
    parser.add_argument("--seconds", type=int, default=420, help="the most that one row may take [default: 420]")
    parser.add_argument("--limit", type=int, default=900, help="seconds after which a process is ended [default: 900]")
    parser.add_argument("--folder", type=Path, help="keep the models there, for another call")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of each: to try the script itself")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="[default: cuda]")
    add_option(parser)
    options = parser.parse_args()
    if unknown := [piece for piece in options.pieces if piece not in PIECES]:
        parser.error(f"no such piece: {', '.join(unknown)}; there are {', '.join(PIECES)}")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu goes with --tiny: models of these sizes are for a GPU")
    if not 0 < options.warm_up < options.steps:
        parser.error("--warm-up is at least 1 and less than --steps")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()

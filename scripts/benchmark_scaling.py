"""Ranks beside one process: the same rows in the same optimizer steps, tokens a second of 1, 2 and 4 processes.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/benchmark_scaling.py

SmolLM2-135M-Instruct learns made-up rows with LoRA r=8 on all linear layers, in bfloat16, by gloo on CPU cores, a
thread each. A step has the same rows whatever the number of processes, and what a process reads of them is one batch.
The counts are run in turn. The rate counts every token of the rows from the beginning of the first step to the end of
the last one. The processor's seconds are those of all processes, from their start to their end, loading included.
More processes than cores show what it costs that they wait for one another.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmark_record import Figure, add_option, record

from loraft.config.config_file import dump_config
from loraft.config.schema import RunConfig


def main() -> None:
    """Measures each count in turn and prints a line of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each count is run, in turn [default: 5]")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of a run [default: 12]")
    parser.add_argument("--rows", type=int, default=32, help="rows of a step, of about 50 tokens [default: 32]")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="the counts [default: 1 2 4]")
    add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", options.rows * options.steps)
        runs: dict[int, list[tuple[float, float]]] = {count: [] for count in options.processes}
        for _ in range(options.rounds):
            for count in options.processes:
                runs[count].append(run(folder, count, options.rows, options.steps))
                print(f"{count}: {runs[count][-1][0]:.0f} tokens/s", file=sys.stderr)
    first = options.processes[0]
    for count, measured in runs.items():
        rate, busy = (statistics.median(values) for values in zip(*measured, strict=True))
        of_first = statistics.median(alone[0] for alone in runs[first])
        print(f"{count:2} processes  {rate:7.0f} tokens/s  {rate / of_first:5.2f} ×  {busy:6.1f} processor s")
        if count != first:
            said = f"training by {count} processes on CPU cores, LoRA"
            record(options.json, [Figure(said, "tokens/s", rate, f"by {first}", of_first)])


def write_rows(path: Path, count: int) -> None:
    """Rows of numbers, drawn by a seed."""
    draw = random.Random(0)
    texts = (" ".join(str(draw.randint(0, 99)) for _ in range(draw.randint(12, 24))) for _ in range(count))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def run(folder: Path, processes: int, rows: int, steps: int) -> tuple[float, float]:
    """Train with so many processes: the tokens a second of the steps, and the processor's seconds of everything."""
    config, out = folder / "run.json", folder / "run"
    values = {
        "method": "lora",
        "model": {"name_or_path": "builtin:smollm2-135m-instruct", "dtype": "bfloat16"},
        "lora": {"r": 8, "target_modules": "all-linear"},
        "data": {"train": str(folder / "rows.jsonl"), "eval": None, "shared_prefix": "off"},
        "training": {
            "output_dir": str(out),
            "max_steps": steps,
            "per_device_train_batch_size": rows // processes,
            "save_steps": steps,
            "logging_steps": steps,
            "gradient_checkpointing": False,
        },
    }
    config.write_text(dump_config(RunConfig.model_validate(values)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["train", str(config), "--overwrite", "--json", "--num-processes", str(processes)]
    done = subprocess.run([sys.executable, "-m", "loraft", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return last["tokens_per_second"], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()

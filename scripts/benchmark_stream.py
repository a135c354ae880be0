"""A long stream of rows that several processes read together: the time to the first batch, and memory that stays flat.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/benchmark_stream.py

2,000,000 made-up rows of some 20 tokens of SmolLM2's tokenizer lie in 20 files, JSON Lines or Parquet, and are drawn
from a buffer of 10,000. Each process plans the run as training would, then takes its share of every batch; no model
computes. Told are the seconds from the beginning of planning to the first batch, the processor's time that a process
takes for a row of the stream, and the memory that no file holds: after a tenth of the rows, and the most after that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmark_record import Figure, add_option, gigabytes, record

from loraft.config.schema import RunConfig
from loraft.distributed.join import joined
from loraft.planning.run_plan import plan_run

FILES = 20
SIZE = 64
WORDS = ("the", "order", "was", "late", "and", "customer", "asks", "for", "money", "back", "delivery", "on", "Monday")


class Read(NamedTuple):
    """What reading took a process: seconds to the first batch and of the processor, bytes held early and at most."""

    first: float
    busy: float
    early: int
    most: int


def main() -> None:
    """Reads each kind of file by each number of processes and prints a line of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, metavar="N", help="how many rows [default: 2000000]")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="the counts [default: 1 2]")
    parser.add_argument("--kinds", nargs="+", default=["jsonl", "parquet"], choices=("jsonl", "parquet"))
    add_option(parser)
    options = parser.parse_args()
    print(f"{'':>22}{'first batch, s':>16}{'µs a row':>10}{'early, MB':>11}{'most, MB':>10}")
    with tempfile.TemporaryDirectory() as name:
        for kind in options.kinds:
            write_files(Path(name) / kind, kind, options.rows)
            for count in options.processes:
                ranks = read_by(count, Path(name) / kind, options.rows)
                slowest, busiest = max(each.first for each in ranks), max(each.busy for each in ranks)
                early, most = max(each.early for each in ranks), max(each.most for each in ranks)
                named = f"{kind}, {count} process{'es' * (count > 1)}"
                a_row = 1e6 * busiest / options.rows
                print(f"{named:>22}{slowest:>16.1f}{a_row:>10.1f}{early / 1e6:>11.0f}{most / 1e6:>10.0f}", flush=True)
                said = f"a stream of {options.rows:,} rows in {FILES} files, {named}"
                figures = [
                    Figure(f"{said}: first batch", "s", slowest),
                    Figure(f"{said}: a row", "processor µs", a_row),
                ]
                record(options.json, [*figures, gigabytes(f"{said}: most memory", most, "after a tenth", early)])


def write_files(folder: Path, kind: str, rows: int) -> None:
    """Rows of random words, no two alike, the same ones each time."""
    folder.mkdir()
    draw = random.Random(0)
    for number in range(FILES):
        found = list(made_up(draw, range(number * rows // FILES, (number + 1) * rows // FILES)))
        if kind == "jsonl":
            (folder / f"{number:02}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        else:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(
                pyarrow.Table.from_pylist(found), folder / f"{number:02}.parquet", row_group_size=10_000
            )


def made_up(draw: random.Random, numbers: range) -> Iterator[Mapping[str, str]]:
    """A row for each number."""
    for number in numbers:
        prompt, completion = (" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in "pc")
        yield {"prompt": f"{number}: {prompt}", "completion": f" {completion}"}


def read_by(count: int, folder: Path, rows: int) -> list[Read]:
    """What reading a folder took each of so many processes."""
    places = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29577",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    children = []
    for rank in range(count):
        here, there = os.pipe()
        if os.fork() == 0:
            os.environ.update(places | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            os.write(there, json.dumps(read(folder, rows)).encode())
            os._exit(0)
        os.close(there)
        children.append(here)
    found = [os.fdopen(each, "rb").read() for each in children]
    for _ in children:
        os.wait()
    if not all(found):
        sys.exit("a process has failed")
    return [Read(*json.loads(each)) for each in found]


def read(folder: Path, rows: int) -> Read:
    """Read a folder to its end as one of the processes that the environment tells of."""
    config = RunConfig.model_validate(settings(folder))
    early, most, drawn, first = 0, 0, 0, 0.0
    with joined(config.distributed) as ranks:
        began, busy = time.monotonic(), time.process_time()
        plan = plan_run(config, ranks=ranks)
        for number, window in enumerate(plan.batches.windows(plan.data.train, 0, 0, (0, 0))):
            ranks.share(window, SIZE, filled=False)
            first = first or time.monotonic() - began
            drawn += sum(map(len, window.batches))
            if drawn > rows / 10 and number % 100 == 0:
                early, most = early or held(), max(most, held())
        return Read(first, time.process_time() - busy, early, most)


def settings(folder: Path) -> Mapping[str, Any]:
    """A config that trains one epoch."""
    return {
        "method": "lora",
        "model": {"name_or_path": "builtin:smollm2-135m-instruct"},
        "data": {"train": str(folder), "eval": None, "streaming": True, "max_length": 64},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": SIZE},
    }


def held() -> int:
    """The bytes of this process that lie in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


if __name__ == "__main__":
    main()

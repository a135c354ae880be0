"""How reading, tokenizing and planning grow with the number of rows.

    .venv/bin/python scripts/benchmark_rows.py

Made-up prompts with completions of 40 to 120 tokens of SmolLM2's tokenizer, 10,000, 100,000 and 1,000,000 of them. Each
number of rows is planned by `loraft check` in a process of its own, first with nothing in loraft's cache, then with the
tokens of the first time there. Told are the processor's time, children included, and the most memory that the process
held, both beside those of a check of ten rows: what is left grows with the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmark_record import Figure, add_option, gigabytes, record

from loraft.io.paths import CONVERSION, cache_folder

ROWS = (10_000, 100_000, 1_000_000)
WORDS = ("the", "order", "was", "late", "and", "customer", "asks", "for", "money", "back", "delivery", "on", "Monday")


class Taken(NamedTuple):
    """What a process took: seconds of the processor, and bytes at most."""

    seconds: float
    peak: int

    def beyond(self, other: Taken) -> Taken:
        """What it took more than another one."""
        return Taken(self.seconds - other.seconds, self.peak - other.peak)


def main() -> None:
    """Measures each number of rows and prints a line of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="N", help="how many rows")
    parser.add_argument("--streaming", action="store_true", help="stream the rows, by which none are kept")
    add_option(parser)
    options = parser.parse_args()
    headings = ("tokenized, µs a row", "from the cache, µs", "more memory, MB", "from the cache")
    print(f"{'rows':>10}" + "".join(f"{heading:>21}" for heading in headings))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = planned(folder, 10, streaming=options.streaming)[0]
        for count in options.rows:
            first, again = (t.beyond(alone) for t in planned(folder, count, streaming=options.streaming))
            times, sizes = (first.seconds, again.seconds), (first.peak, again.peak)
            micro = "".join(f"{1e6 * seconds / count:>21.1f}" for seconds in times)
            print(f"{count:>10,}{micro}" + "".join(f"{size / 1e6:>21.0f}" for size in sizes), flush=True)
            for said, taken in (("tokenized", first), ("from the cache", again)):
                named = f"check of {count:,} rows{' streamed' * options.streaming}, {said}"
                time = Figure(f"{named}: time a row", "processor µs", 1e6 * taken.seconds / count)
                record(options.json, [time, gigabytes(f"{named}: memory beyond ten rows'", taken.peak)])


def planned(folder: Path, count: int, *, streaming: bool) -> list[Taken]:
    """Two checks of so many rows, the second with what the first one kept."""
    rows, config = folder / f"{count}.jsonl", folder / f"{count}.yaml"
    write_rows(rows, count)
    config.write_text(
        json.dumps(
            {
                "method": "lora",
                "model": {"name_or_path": "builtin:smollm2-135m-instruct"},
                "data": {"train": str(rows), "eval": None, "streaming": streaming},
                "training": {"max_steps": 100} if streaming else {"num_train_epochs": 1},
            }
        )
    )
    command = [sys.executable, "-m", "loraft", "check", str(config), "--json"]
    taken = [taken_by(command, folder / str(count)) for _ in range(2)]
    rows.unlink()
    return taken


def write_rows(path: Path, count: int) -> None:
    """Rows of random words, no two alike, the same ones each time."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            prompt, completion = (" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) for _ in "pc")
            file.write(json.dumps({"prompt": f"{number}: {prompt}", "completion": f" {completion}"}) + "\n")


def taken_by(command: list[str], cache: Path) -> Taken:
    """What a command took, with a cache folder of its own."""
    models = cache_folder() / CONVERSION
    cache.mkdir(exist_ok=True)
    if models.is_dir() and not (cache / models.name).exists():
        (cache / models.name).symlink_to(models.resolve())
    process = subprocess.Popen(command, env={**os.environ, "LORAFT_CACHE": str(cache)}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return Taken(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


if __name__ == "__main__":
    main()

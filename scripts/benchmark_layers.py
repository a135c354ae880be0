"""The last layers against all of them: how much faster a step is, and how much less memory it takes.

    .venv/bin/python scripts/benchmark_layers.py

SmolLM2-135M-Instruct learns made-up tickets with LoRA r=8 on the linear modules of all its 30 layers, or of the last
four alone: below those nothing is trained and no graph is built, so that the backward pass ends there. Both are
run with gradient checkpointing and without. Each run is a process of its own, and the four alternate: what slows the
machine for a while slows all. A step is timed from the end of the one before, the first two left out; its time is the
median over the run's steps. Peak memory is the most that the process ever held.

    .venv/bin/python scripts/benchmark_layers.py --kept

measures `training.cache_frozen_prefix` instead, on the last four layers and three epochs of the same batches: the
processor's time of a step in the first epoch over that in the later ones, in the same run, and whether the losses are
those of a run without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark_record import Figure, add_option, gigabytes, record

LAYERS = ("all", "last:4")
WARM_UP = 2
"""The first steps, which are slower than the rest: kernels are made for new sizes, memory is first touched."""


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        seconds: The median step.
        peak_bytes: The most memory that the process held.
        loss: The last step's loss.
        cpu_seconds: The processor's time of each step, one after the other.
        losses: That of each step.
    """

    seconds: float
    peak_bytes: int
    loss: float
    cpu_seconds: list[float]
    losses: list[float]


def main() -> None:
    """Measures and prints a table; or, as a worker, does one run."""
    options = parse_options()
    if options.worker is not None:
        options.out.write_text(json.dumps(asdict(train(options.worker))))
        return
    with tempfile.TemporaryDirectory() as name:
        report = kept_prefix(Path(name), options) if options.kept else summary(alternate(Path(name), options))
    (print_kept if options.kept else print_report)(report)
    record(options.json, figures_of_kept(report) if options.kept else figures(report))


def parse_options() -> argparse.Namespace:
    """What the command line says; the hidden options are how a worker is told its part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run, in turn [default: 3]")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps in a run [default: 10]")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in a step [default: 8]")
    add_option(parser)
    parser.add_argument("--kept", action="store_true", help="measure epochs that read what frozen layers gave")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def alternate(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[Measured]]]:
    """The runs by checkpointing (`off`, `on`) and layers, all four in each round."""
    runs: dict[str, dict[str, list[Measured]]] = {on: {layers: [] for layers in LAYERS} for on in ("off", "on")}
    for _ in range(options.rounds):
        for checkpointing, by_layers in runs.items():
            for layers, measured in by_layers.items():
                measured.append(worker(folder, run_config(folder, layers, checkpointing, options)))
                told = f"checkpointing {checkpointing}, {layers}: {measured[-1].seconds:.2f} s a step"
                print(told, file=sys.stderr)
    return runs


def run_config(folder: Path, layers: str, checkpointing: str, options: argparse.Namespace) -> dict[str, object]:
    """The run as loraft's config; JSON is YAML."""
    return {
        "method": "lora",
        "model": {"name_or_path": "builtin:smollm2-135m-instruct", "dtype": "bfloat16"},
        "lora": {"r": 8, "alpha": 16, "layers": layers},
        "data": {"train": "builtin:tickets", "eval": None, "max_length": 1024},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch_size,
            "learning_rate": 2e-4,
            "logging_steps": 1,
            "gradient_checkpointing": checkpointing == "on",
        },
    }


def worker(folder: Path, config: dict[str, object]) -> Measured:
    """One run in a process of its own; what it measured comes back through a file."""
    given, out = folder / "config.json", folder / "measured.json"
    given.write_text(json.dumps(config))
    command = [sys.executable, __file__, f"--worker={given}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return Measured(**json.loads(out.read_text()))


def train(config: Path) -> Measured:
    """`loraft train` on a config, its steps timed."""
    from loraft import load_config
    from loraft import train as train_run
    from loraft.events import Event
    from loraft.training.run_events import StepDone

    clock: list[float] = []
    cpu: list[float] = []
    losses: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, StepDone):
            clock.append(time.perf_counter())
            cpu.append(time.process_time())
            losses.append(event.loss)

    result = train_run(load_config(config, []), overwrite=True, observer=watch)
    steps = [after - before for before, after in zip(clock[WARM_UP - 1 :], clock[WARM_UP:], strict=False)]
    of_steps = [after - before for before, after in zip([cpu[0], *cpu], cpu, strict=False)]
    return Measured(statistics.median(steps), result.peak_bytes, losses[-1], of_steps, losses)


def kept_prefix(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `training.cache_frozen_prefix` gives: runs with it and without, in turn."""
    runs: dict[bool, list[Measured]] = {True: [], False: []}
    for _ in range(options.rounds):
        for kept, measured in runs.items():
            config: dict[str, Any] = run_config(folder, LAYERS[1], "off", options)
            rows = {"path": "builtin:tickets", "limit": options.steps * options.batch_size}
            config["data"] |= {"train": rows, "shuffle": "batches"}
            config["training"] |= {"max_steps": 3 * options.steps, "cache_frozen_prefix": kept}
            measured.append(worker(folder, config))
    first, later = (
        [statistics.median(run.cpu_seconds[part]) for run in runs[True]]
        for part in (slice(WARM_UP, options.steps), slice(options.steps, None))
    )
    return {
        "first_epoch": statistics.median(first),
        "later_epochs": statistics.median(later),
        "speed_ratio": statistics.median(a / b for a, b in zip(first, later, strict=True)),
        "without_it": statistics.median(statistics.median(run.cpu_seconds[WARM_UP:]) for run in runs[False]),
        "same_losses": len({tuple(run.losses) for of_one in runs.values() for run in of_one}) == 1,
    }


def print_kept(report: dict[str, Any]) -> None:
    """The figures that a person reads: the processor's seconds a step."""
    for name, figure in report.items():
        print(f"{name:15}{figure:10.3f}" if isinstance(figure, float) else f"{name:15}{figure!s:>10}")


def summary(runs: dict[str, dict[str, list[Measured]]]) -> dict[str, Any]:
    """Every figure, with the medians and their ratios."""
    report: dict[str, Any] = {}
    for checkpointing, by_layers in runs.items():
        seconds = {layers: statistics.median(run.seconds for run in of_one) for layers, of_one in by_layers.items()}
        peak = {layers: statistics.median(run.peak_bytes for run in of_one) for layers, of_one in by_layers.items()}
        every, last = LAYERS
        report[checkpointing] = {
            "runs": {layers: [asdict(run) for run in of_one] for layers, of_one in by_layers.items()},
            "seconds_a_step": seconds,
            "peak_bytes": peak,
            "speed_ratio": seconds[every] / seconds[last],
            "memory_ratio": peak[last] / peak[every],
        }
    return report


def figures_of_kept(report: dict[str, Any]) -> list[Figure]:
    """What a run with `--kept` adds to a file of figures."""
    name, unit, ratio = "a step with cache_frozen_prefix", "processor s", 1 / report["speed_ratio"]
    first, later = report["first_epoch"], report["later_epochs"]
    return [
        Figure(f"{name}, later epochs", unit, later, "its first epoch", first, ratio),
        Figure(f"{name}, first epoch", unit, first, "without the key", report["without_it"]),
    ]


def figures(report: dict[str, Any]) -> list[Figure]:
    """What a run adds to a file of figures."""
    found = []
    every, last = LAYERS
    for checkpointing, of_one in report.items():
        name = f"a step with layers: {last}" + (", checkpointed" if checkpointing == "on" else "")
        seconds, peak = of_one["seconds_a_step"], of_one["peak_bytes"]
        found.append(Figure(name, "s", seconds[last], f"{every} layers", seconds[every]))
        found.append(gigabytes(f"{name}: peak memory", peak[last], f"{every} layers", peak[every]))
    return found


def print_report(report: dict[str, Any]) -> None:
    """The table that a person reads."""
    print(f"{'checkpointing':15}{'layers':10}{'s a step':>10}{'peak GB':>10}")
    for checkpointing, figures in report.items():
        for layers in LAYERS:
            seconds, peak = figures["seconds_a_step"][layers], figures["peak_bytes"][layers] / 1e9
            print(f"{checkpointing:15}{layers:10}{seconds:10.2f}{peak:10.2f}")
        print(f"{'':15}{'ratio':10}{figures['speed_ratio']:9.2f}×{figures['memory_ratio']:10.2f}")


if __name__ == "__main__":
    main()

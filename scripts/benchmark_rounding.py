"""What training in bfloat16 loses to float32, where base and update are rounded together and where as PEFT has them.

    .venv/bin/python scripts/benchmark_rounding.py
    .venv/bin/python scripts/benchmark_rounding.py --method qlora
    .venv/bin/python scripts/benchmark_rounding.py --dora

SmolLM2-135M-Instruct learns the quickstart's tickets from the same rows in the same order three times: in float32, in
bfloat16, and in bfloat16 with PEFT's own layers, which add each update to outputs that are rounded already. What is
printed is how far the losses of the steps lie from those of float32, in nats a token: the mean of the steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

from benchmark_record import Figure, add_option, record

RUNS = {"float32": "float32", "bfloat16": "bfloat16", "bfloat16, PEFT's layers": "bfloat16"}
"""Each run's dtype."""


def main() -> None:
    """Trains and prints a table."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        losses = {name: train(Path(folder), dtype, options, "PEFT" in name) for name, dtype in RUNS.items()}
    for step, each in enumerate(zip(*losses.values(), strict=True), 1):
        print(f"step {step:3}", *(f"{loss:8.4f}" for loss in each))
    exact, *others = losses.values()
    ours, theirs = (fmean(abs(a - b) for a, b in zip(each, exact, strict=True)) for each in others)
    print(f"from float32: {ours:.4f} nats a token, and {theirs:.4f} with PEFT's layers")
    method = f"{options.method} with DoRA" if options.dora else options.method
    name = f"{method} in bfloat16, mean distance of {options.steps} steps' losses from float32's"
    record(options.json, [Figure(name, "nats", ours, "PEFT's layers", theirs)])


def parse_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["lora", "qlora"], default="lora", help="[default: lora]")
    parser.add_argument("--dora", action="store_true", help="learn magnitudes too")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps in a run [default: 24]")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapter's inputs [default: 0]")
    parser.add_argument("--rate", type=float, default=2e-4, help="the learning rate [default: 2e-4]")
    add_option(parser)
    return parser.parse_args()


def train(folder: Path, dtype: str, options: argparse.Namespace, with_pefts_layers: bool) -> list[float]:
    """`loraft train`: the loss of each step."""
    from loraft import load_config
    from loraft import train as train_run
    from loraft.events import Event
    from loraft.training.run_events import StepDone

    config = folder / "config.json"  # JSON is YAML
    config.write_text(json.dumps(run_config(folder, dtype, options)))
    losses: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)
            print(f"step {event.step} of {options.steps}: {event.loss:.4f}", file=sys.stderr)

    def leave(*_: object) -> None:
        """In place of what has layers of LoRA train by loraft's functions."""

    layers = patch("loraft.adapters.inject.patch_lora_linears", leave) if with_pefts_layers else nullcontext()
    with layers:
        train_run(load_config(config, []), overwrite=True, observer=watch)
    return losses


def run_config(folder: Path, dtype: str, options: argparse.Namespace) -> dict[str, object]:
    """The run as loraft's config."""
    return {
        "method": options.method,
        "model": {"name_or_path": "builtin:smollm2-135m-instruct", "dtype": dtype},
        "lora": {"r": 16, "alpha": 32, "dropout": options.dropout, "use_dora": options.dora},
        "data": {"train": "builtin:tickets", "eval": None, "max_length": 256},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": options.steps,
            "per_device_train_batch_size": 8,
            "learning_rate": options.rate,
            "logging_steps": 1,
        },
    }


if __name__ == "__main__":
    main()

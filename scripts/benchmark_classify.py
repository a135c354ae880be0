"""loraft against transformers' Trainer: a classifier of texts, the same rows in the same optimizer steps.

    scripts/install bench && .venv/bin/python scripts/benchmark_classify.py

all-MiniLM-L6-v2 learns to tell the topics of English conversations of the PyPI package chatterbot-corpus, with LoRA
r=8 on all linear layers, in bfloat16, with the dropout of its config. loraft's plan of the run says which rows share a
step; the Trainer, with PEFT's adapter, is given the same tokens in the same order, with autocast and without, and the
fastest is taken. Each run is a process of its own, and the two alternate. The rate counts every token of the rows,
padding not, from the beginning of the first step to the end of the last one. Peak memory is the most that the process
ever held.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmark_record import Figure, add_option, gigabytes, record
from benchmark_train import LEARNING_RATE, RANK, Measured, Reading, measured_between, now, train_loraft

MODEL = "builtin:all-minilm-l6-v2"
Step = list[dict[str, Any]]


def main() -> None:
    """Measures both and prints a table; or, as a worker, does one part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8, help="rows in an optimizer step [default: 8]")
    parser.add_argument("--rows", type=int, default=120, help="texts [default: 120]")
    parser.add_argument("--turns", type=int, default=40, help="the most turns of a text [default: 40]")
    parser.add_argument("--pairs", type=int, default=3, help="how often both are run, in turn [default: 3]")
    add_option(parser)
    parser.add_argument("--worker", choices=["plan", "loraft", "autocast", "bfloat16"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        run_worker(options.worker, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "texts.jsonl", options.rows, options.turns)
        (folder / "config.json").write_text(json.dumps(run_config(folder, options.batch_size)))
        worker("plan", folder)
        tried = {peer: worker(peer, folder).tokens_per_second for peer in ("autocast", "bfloat16")}
        peer = max(tried, key=lambda each: tried[each])
        runs: dict[str, list[Measured]] = {peer: [], "loraft": []}
        for _ in range(options.pairs):
            for kind, measured in runs.items():
                measured.append(worker(kind, folder))
                print(f"{kind}: {measured[-1].tokens_per_second:.0f} tokens/s", file=sys.stderr)
        steps = json.loads((folder / "plan.json").read_text())["steps"]
    report(runs, peer, steps, options.batch_size, options.json)


def write_rows(path: Path, count: int, most: int) -> None:
    """`count` texts, drawn by a seed, of 1 to `most` turns that follow one another in a topic; and the topic."""
    from ruamel.yaml import YAML

    rows = []
    for topic in sorted(files("chatterbot_corpus").joinpath("data/english").iterdir(), key=lambda each: each.name):
        turns = [t for c in YAML(typ="safe").load(topic.read_text("utf-8"))["conversations"] for t in c]
        begin = 0
        while begin < len(turns):
            length = 1 + 7 * len(rows) % most
            text = "\n".join(map(str, turns[begin : begin + length]))
            rows.append({"text": text, "label": topic.name.removesuffix(".yml")})
            begin += length
    random.Random(0).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))


def run_config(folder: Path, batch_size: int) -> dict[str, object]:
    """The run as loraft's config; JSON is YAML."""
    return {
        "task": "seq_cls",
        "method": "lora",
        "model": {"name_or_path": MODEL, "dtype": "bfloat16"},
        "lora": {"r": RANK, "alpha": 2 * RANK, "target_modules": "all-linear"},
        "data": {
            "train": str(folder / "texts.jsonl"), "eval": None, "max_length": 512, "on_overlength": "truncate",
        },
        "training": {
            "output_dir": str(folder / "run"), "num_train_epochs": 1, "per_device_train_batch_size": batch_size,
            "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1,
            "gradient_checkpointing": False,
        },
    }  # fmt: skip


def worker(kind: str, folder: Path) -> Measured:
    """Run one part in a process of its own; what it measured comes back through a file. A plan measures nothing."""
    out = folder / "measured.json"
    out.write_text(json.dumps(asdict(Measured(0, 1.0, 0, None, 1.0))))
    command = [sys.executable, __file__, f"--worker={kind}", f"--folder={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return Measured(**json.loads(out.read_text()))


def run_worker(kind: str, folder: Path) -> None:
    """One part, in a process of its own."""
    config = folder / "config.json"
    if kind == "plan":
        write_plan(config, folder / "plan.json")
        return
    plan = json.loads((folder / "plan.json").read_text())
    steps: list[Step] = plan["steps"]
    if kind == "loraft":
        measured = train_loraft(config, [[{"input_ids": row["input_ids"]} for row in step] for step in steps])
    else:
        measured = train_peer(plan, steps, autocast=kind == "autocast")
    (folder / "measured.json").write_text(json.dumps(asdict(measured)))


def write_plan(config: Path, plan: Path) -> None:
    """The tokens and classes of each optimizer step, as loraft will train them."""
    from loraft.config.config_file import load_config
    from loraft.models.sources import resolve
    from loraft.planning.run_plan import plan_run

    run = plan_run(load_config(config, []))
    rows = run.data.train
    steps = [
        [{"input_ids": rows[i].input_ids, "label": rows[i].labels[0]} for i in batch] for batch in run.batches.epoch(0)
    ]
    classes = len(run.data.renderer.labels)
    plan.write_text(json.dumps({"model": str(resolve(MODEL)), "classes": classes, "steps": steps}))


def train_peer(plan: dict[str, Any], steps: list[Step], *, autocast: bool) -> Measured:
    """The Trainer of transformers over PEFT's adapter on these steps, in this order."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    clock: list[Reading] = []

    class Clock(TrainerCallback):
        """Reads the clocks at the beginning and after each step."""

        def on_train_begin(self, *_: object, **__: object) -> None:
            clock.append(now())

        on_step_end = on_train_begin

    model = AutoModelForSequenceClassification.from_pretrained(
        plan["model"], dtype=torch.bfloat16, num_labels=plan["classes"]
    )
    targets = sorted({name for name, each in model.bert.encoder.named_modules() if isinstance(each, torch.nn.Linear)})
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="SEQ_CLS")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=get_peft_model(model, lora),
            args=TrainingArguments(
                output_dir=folder, per_device_train_batch_size=len(steps[0]), num_train_epochs=1,
                train_sampling_strategy="sequential", learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
                use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to=[], logging_steps=1,
                disable_tqdm=True, bf16=autocast,
            ),
            train_dataset=Dataset.from_list([row for step in steps for row in step]),
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(plan["model"])),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return measured_between(clock[0], clock[-1], steps, statistics.fmean(losses))


def report(runs: dict[str, list[Measured]], peer: str, steps: list[Step], batch_size: int, out: Path | None) -> None:
    """The table that a person reads, and the figures."""
    lengths = [len(row["input_ids"]) for step in steps for row in step]
    print(f"{len(steps)} steps, {sum(lengths)} tokens, rows of {min(lengths)} to {max(lengths)}")
    print(f"medians of {len(runs['loraft'])} runs each; the Trainer with {peer}")
    print(f"{'':10}{'tokens/s':>10}{'a CPU s':>10}{'peak GB':>10}{'mean loss':>11}")
    rate, busy, peak = {}, {}, {}
    for name, of_one in runs.items():
        rate[name] = statistics.median(run.tokens_per_second for run in of_one)
        busy[name] = statistics.median(run.tokens / run.processor_seconds for run in of_one)
        peak[name] = statistics.median(run.peak_bytes for run in of_one)
        loss = statistics.median(run.loss or 0.0 for run in of_one)
        print(f"{name:10}{rate[name]:10.0f}{busy[name]:10.0f}{peak[name] / 1e9:10.2f}{loss:11.3f}")
    ratios = [measured["loraft"] / measured[peer] for measured in (rate, busy, peak)]
    print(f"{'ratio':10}{ratios[0]:10.2f}{ratios[1]:10.2f}{ratios[2]:10.2f}")
    name, of_peer = f"LoRA training of a classifier, {batch_size} rows a step", "transformers' Trainer"
    figures = [
        Figure(name, "tokens/s", rate["loraft"], of_peer, rate[peer]),
        Figure(name, "tokens/processor s", busy["loraft"], of_peer, busy[peer]),
        gigabytes(f"{name}: peak memory", peak["loraft"], of_peer, peak[peer]),
    ]
    record(out, figures, packages=[])


if __name__ == "__main__":
    main()

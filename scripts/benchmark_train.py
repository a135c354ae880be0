"""loraft against TRL's SFTTrainer: the same rows in the same optimizer steps, tokens a second and peak memory of both.

    scripts/install bench && .venv/bin/python scripts/benchmark_train.py

SmolLM2-135M-Instruct learns English question-answer pairs of the PyPI package chatterbot-corpus with LoRA r=8 on all
linear layers, in bfloat16. loraft's plan of the run says which rows share a step; TRL is given the same tokens in the
same order. 16 rows are about 900 tokens a step; with fewer, what a step costs whatever is in it weighs more on both.
TRL's settings are tried first on a few steps, and the fastest one is used. Each run is a process of its own, and the
two alternate. The rate counts every token of the rows, prompts included and padding not, from the beginning of the
first step to the end of the last one: loading, tokenizing and saving are left out. Peak memory is the most that the
process ever held. The rate by the processor's time holds beside others' work, with
OMP_NUM_THREADS=1. The floor is a bare loop of the products of linear layers and head for every token, shared or not.
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
import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmark_record import Figure, add_option, gigabytes, record

TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "padded": {"bf16": True},
    "padded, no autocast": {"bf16": False},
    "padding-free": {"bf16": True, "padding_free": True},
    "padding-free, no autocast": {"bf16": False, "padding_free": True},
    "padding-free, eager attention": {"bf16": True, "padding_free": True, "attention": "eager"},
}
"""Everything that changes TRL's speed here and leaves rows and steps alone; weights are bfloat16 in all of them."""
LEARNING_RATE = 2e-4
Reading = tuple[float, float]
RANK = 8
ALPHA = 16


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        tokens: Tokens of all rows, prompts included, padding not.
        seconds: From the beginning of the first step to the end of the last one.
        peak_bytes: The most memory that the process held.
        loss: The mean of the steps' losses: both learn the same, so both should be near one another. None of the floor.
        processor_seconds: What the processor was busy for in that time, user and system.
    """

    tokens: int
    seconds: float
    peak_bytes: int
    loss: float | None
    processor_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """The rate."""
        return self.tokens / self.seconds


def main() -> None:
    """Measures both and prints a table; or, as a worker, does one part of it."""
    options = parse_options()
    if options.worker is not None:
        run_worker(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "pairs.jsonl", options.rows)
        config = folder / "benchmark.json"
        config.write_text(json.dumps(run_config(folder, options.batch_size, shares=options.shared_prefix)))
        plan = folder / "plan.json"
        worker("plan", folder, config=config, plan=plan)
        setting = options.trl_setting or fastest_setting(folder, plan, options.probe_steps)
        runs = alternate(folder, config, plan, setting, options.pairs)
        report = summary(json.loads(plan.read_text()), setting, runs)
    print_report(report)
    record(options.json, figures(report, options.batch_size), packages=["trl"])


def parse_options() -> argparse.Namespace:
    """What the command line says; the hidden options are how a worker is told its part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="question-answer pairs [default: 256]")
    parser.add_argument("--batch-size", type=int, default=16, help="rows in an optimizer step [default: 16]")
    parser.add_argument("--pairs", type=int, default=3, help="how often both are run, in turn [default: 3]")
    parser.add_argument("--probe-steps", type=int, default=6, help="steps to try TRL's settings on [default: 6]")
    parser.add_argument("--trl-setting", choices=TRL_SETTINGS, help="use this setting of TRL and try no other")
    parser.add_argument("--shared-prefix", action=argparse.BooleanOptionalAction, default=True, help="the key in data")
    add_option(parser)
    parser.add_argument("--worker", choices=["plan", "trl", "loraft", "floor"], help=argparse.SUPPRESS)
    for name in ("config", "plan", "out"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_rows(path: Path, count: int) -> None:
    """The first question and answer of `count` conversations, drawn by a seed."""
    from ruamel.yaml import YAML

    topics = sorted(
        (topic for topic in files("chatterbot_corpus").joinpath("data/english").iterdir()), key=lambda topic: topic.name
    )
    conversations = [c for topic in topics for c in YAML(typ="safe").load(topic.read_text("utf-8"))["conversations"]]
    random.Random(0).shuffle(conversations)
    turns = (
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a, *_ in conversations[:count]
    )
    rows = [{"messages": pair} for pair in turns]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_config(folder: Path, batch_size: int, *, shares: bool) -> dict[str, object]:
    """The run as loraft's config; JSON is YAML."""
    return {
        "method": "lora",
        "model": {"name_or_path": "builtin:smollm2-135m-instruct", "dtype": "bfloat16"},
        "lora": {"r": RANK, "alpha": ALPHA, "target_modules": "all-linear"},
        "data": {
            "train": str(folder / "pairs.jsonl"),
            "eval": None,
            "max_length": 1024,
            "shared_prefix": "auto" if shares else "off",
        },
        "training": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": batch_size,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "gradient_checkpointing": False,
        },
    }


def fastest_setting(folder: Path, plan: Path, steps: int) -> str:
    """The setting of TRL that trains the first steps fastest."""
    rates: dict[str, float] = {}
    for setting in TRL_SETTINGS:
        measured = worker("trl", folder, plan=plan, trl_setting=setting, steps=steps)
        rates[setting] = measured.tokens_per_second
        print(f"TRL {setting}: {rates[setting]:.0f} tokens/s over {steps} steps", file=sys.stderr)
    return max(rates, key=lambda setting: rates[setting])


def alternate(folder: Path, config: Path, plan: Path, setting: str, pairs: int) -> dict[str, list[Measured]]:
    """TRL, loraft, TRL, loraft, …: what slows the machine for a while slows both."""
    runs: dict[str, list[Measured]] = {"trl": [], "loraft": [], "floor": []}
    for _ in range(pairs):
        runs["trl"].append(worker("trl", folder, plan=plan, trl_setting=setting))
        runs["loraft"].append(worker("loraft", folder, config=config, plan=plan))
        runs["floor"].append(worker("floor", folder, plan=plan))
        for name, measured in runs.items():
            print(f"{name}: {measured[-1].tokens_per_second:.0f} tokens/s", file=sys.stderr)
    return runs


def worker(kind: str, folder: Path, **arguments: object) -> Measured | None:
    """Run one part in a process of its own; what it measured comes back through a file."""
    out = folder / "measured.json"
    out.unlink(missing_ok=True)
    given = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    command = [sys.executable, __file__, f"--worker={kind}", f"--out={out}", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return Measured(**json.loads(out.read_text())) if out.is_file() else None


def run_worker(options: argparse.Namespace) -> None:
    """One part, in a process of its own."""
    if options.worker == "plan":
        write_plan(options.config, options.plan)
        return
    plan = json.loads(options.plan.read_text())
    steps = plan["steps"][: options.steps]
    if options.worker == "trl":
        measured = train_trl(plan["model"], steps, options.trl_setting)
    else:
        measured = floor(plan["model"], steps) if options.worker == "floor" else train_loraft(options.config, steps)
    options.out.write_text(json.dumps(asdict(measured)))


def write_plan(config: Path, plan: Path) -> None:
    """The tokens of each optimizer step, as loraft will train them."""
    from loraft.config.config_file import load_config
    from loraft.models.sources import resolve
    from loraft.planning.run_plan import plan_run

    run = plan_run(load_config(config, []))
    examples = run.data.train
    steps = [
        [{"input_ids": examples[i].input_ids, "labels": examples[i].labels} for i in batch]
        for batch in run.batches.epoch(0)
    ]
    plan.write_text(json.dumps({"model": str(resolve(run.config.model.name_or_path)), "steps": steps}))


def train_trl(model: str, steps: list[list[dict[str, list[int]]]], setting: str) -> Measured:
    """SFTTrainer on these steps, in this order, with labels as loraft made them."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock: list[Reading] = []

    class Clock(TrainerCallback):
        """Reads the clocks at the beginning and after each step."""

        def on_train_begin(self, *_: object, **__: object) -> None:
            clock.append(now())

        on_step_end = on_train_begin

    chosen = dict(TRL_SETTINGS[setting])
    attention = chosen.pop("attention", "sdpa")
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation=attention),
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=len(steps[0]), num_train_epochs=1,
                train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True}, max_length=None,
                learning_rate=LEARNING_RATE, lr_scheduler_type="constant", gradient_checkpointing=False,
                use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to=[], logging_steps=1,
                disable_tqdm=True, **chosen,
            ),
            train_dataset=Dataset.from_list([row for step in steps for row in step]),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return measured_between(clock[0], clock[-1], steps, statistics.fmean(losses))


def train_loraft(config: Path, steps: list[list[dict[str, list[int]]]]) -> Measured:
    """`loraft train` on the config whose plan these steps are."""
    from loraft import load_config, train
    from loraft.events import Event
    from loraft.training.run_events import RunStarted, StepDone

    clock: list[Reading] = []
    losses: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, RunStarted | StepDone):
            clock.append(now())
        if isinstance(event, StepDone):
            losses.append(event.loss)

    train(load_config(config, []), overwrite=True, observer=watch)
    if len(losses) != len(steps):
        sys.exit(f"loraft took {len(losses)} steps, the plan has {len(steps)}")
    return measured_between(clock[0], clock[-1], steps, statistics.fmean(losses))


def floor(model: str, steps: list[list[dict[str, list[int]]]]) -> Measured:
    """The products alone: of each layer's linear modules with all tokens, of the head with those that are trained."""
    import torch
    from torch.nn.functional import linear
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    head = loaded.get_output_embeddings()
    weights = [m.weight.data for m in loaded.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    began = now()
    with torch.inference_mode():
        for step in steps:
            trained = sum(label != -100 for row in step for label in row["labels"])
            counts = [(weight, tokens_of([step])) for weight in weights] + [(head.weight.data, trained)]
            given = torch.ones(max(count * max(weight.shape) for weight, count in counts), dtype=torch.bfloat16)
            for weight, n in counts:
                linear(given[: n * weight.shape[1]].view(n, -1), weight)
            for weight, n in reversed(counts):
                given[: n * weight.shape[0]].view(n, -1) @ weight
    return measured_between(began, now(), steps, None)


def now() -> Reading:
    """The clock, and the processor's time of this process."""
    return time.perf_counter(), time.process_time()


def measured_between(
    began: Reading, ended: Reading, steps: list[list[dict[str, list[int]]]], loss: float | None
) -> Measured:
    """A run that went through all steps between two readings of the clocks."""
    return Measured(tokens_of(steps), ended[0] - began[0], peak_bytes(), loss, ended[1] - began[1])


def tokens_of(steps: list[list[dict[str, list[int]]]]) -> int:
    """All tokens, prompts included; nothing is padded here."""
    return sum(len(row["input_ids"]) for step in steps for row in step)


def peak_bytes() -> int:
    """The most memory this process ever held; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def summary(plan: dict[str, Any], setting: str, runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """Every figure, with the medians and their ratios."""
    rate = {name: statistics.median(run.tokens_per_second for run in of_one) for name, of_one in runs.items()}
    peak = {name: statistics.median(run.peak_bytes for run in of_one) for name, of_one in runs.items()}
    busy = {name: statistics.median(run.tokens / run.processor_seconds for run in runs[name]) for name in runs}
    return {
        "optimizer_steps": len(plan["steps"]),
        "trained_tokens": sum(label != -100 for step in plan["steps"] for row in step for label in row["labels"]),
        "trl_setting": setting,
        "runs": {name: [asdict(run) for run in of_one] for name, of_one in runs.items()},
        "tokens_per_second": rate,
        "peak_bytes": peak,
        "tokens_per_processor_second": busy,
        "processor_ratio": busy["loraft"] / busy["trl"],
        "of_the_floor": busy["loraft"] / busy["floor"],
        "rate_ratio": rate["loraft"] / rate["trl"],
        "memory_ratio": peak["loraft"] / peak["trl"],
    }


def figures(report: dict[str, Any], batch_size: int) -> list[Figure]:
    """What a run of this script adds to a file of figures."""
    name, peer = f"LoRA training, {batch_size} rows a step", "TRL's SFTTrainer"
    rate, busy, peak = (report[key] for key in ("tokens_per_second", "tokens_per_processor_second", "peak_bytes"))
    bare = f"{name}, beside bare products"
    return [
        Figure(name, "tokens/s", rate["loraft"], peer, rate["trl"]),
        Figure(name, "tokens/processor s", busy["loraft"], peer, busy["trl"]),
        Figure(bare, "tokens/processor s", busy["loraft"], "a loop of bare products", busy["floor"]),
        gigabytes(f"{name}: peak memory", peak["loraft"], peer, peak["trl"]),
    ]


def print_report(report: dict[str, Any]) -> None:
    """The table that a person reads."""
    runs, tokens = report["runs"], report["runs"]["trl"][0]["tokens"]
    print(f"{report['optimizer_steps']} steps, {tokens} tokens, {report['trained_tokens']} of them trained")
    print(f"medians of {len(runs['trl'])} runs each; TRL's setting: {report['trl_setting']}")
    print(f"{'':8}{'tokens/s':>10}{'a CPU s':>10}{'peak GB':>10}{'mean loss':>11}")
    for name, label in (("trl", "TRL"), ("loraft", "loraft"), ("floor", "floor")):
        losses, rate = [run["loss"] for run in runs[name]], report["tokens_per_second"][name]
        loss = "" if None in losses else f"{statistics.median(losses):.3f}"
        busy, peak = report["tokens_per_processor_second"][name], report["peak_bytes"][name] / 1e9
        print(f"{label:8}{rate:10.0f}{busy:10.0f}{peak:10.2f}{loss:>11}")
    print(f"{'ratio':8}{report['rate_ratio']:10.2f}{report['processor_ratio']:10.2f}{report['memory_ratio']:10.2f}")
    print(f"loraft reaches {report['of_the_floor']:.0%} of the floor, by the processor's time")


if __name__ == "__main__":
    main()

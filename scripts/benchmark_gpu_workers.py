"""What scripts/benchmark_gpu.py runs in processes of their own, so that the memory of one does not count in another's.

`benchmark_gpu_workers.py JOB OUT`: a job is JSON with `kind` and what that function takes; what it found goes to OUT.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from benchmark_gpu_models import write_model, write_rows

from loraft.config.schema import RunConfig
from loraft.errors import OutOfMemoryError, ResourceError
from loraft.io.held_memory import peak_bytes, reset_peak
from loraft.models.device import CUDA_TAKES, StatedDevice
from loraft.planning.run_plan import plan_run

Steps = list[list[list[int]]]
"""The rows of each optimizer step, as tokens."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEAST_ROW = 64
FILLED = 0.995
"""The share of the memory that a planned row may take: a word less or more is not worth another plan."""


def main() -> None:
    """Do one job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    found = JOBS[job.pop("kind")](**job)
    Path(sys.argv[2]).write_text(json.dumps(found))


def prepare(folder: str, sizes: dict[str, Any], device: str, side: int, *, hollow: bool) -> dict[str, Any]:
    """Write a model; measure a square product in bfloat16 of `side`, the best of some rounds; name the device."""
    write_model(Path(folder), sizes, device=device, hollow=hollow)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(6):
        began = clock(device)
        for _ in range(10):
            a @ b
        seconds.append(clock(device) - began)
    named = None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        named = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    return {"rate": 10 * 2 * side**3 / min(seconds), "device": named}


def clock(device: str) -> float:
    """The time, once the device has done all that was launched."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def cap(gigabytes: float | None, device: str) -> None:
    """Have torch take no more than a GPU of so much memory has beside CUDA itself, and tell that much."""
    if gigabytes is None or device != "cuda":
        return
    real = torch.cuda.get_device_properties(0)
    whole = int(gigabytes * 1e9)
    allowed = whole - CUDA_TAKES
    torch.cuda.set_per_process_memory_fraction(allowed / real.total_memory)
    said = {name: getattr(real, name) for name in dir(real) if not name.startswith("_")} | {"total_memory": whole}
    torch.cuda.get_device_properties = lambda *_, **__: SimpleNamespace(**said)  # type: ignore[assignment]
    torch.cuda.mem_get_info = lambda *_, **__: (allowed - torch.cuda.memory_reserved(), whole)


class Stopwatch:
    """Reads the clock after the steps that warm up, and after the last one."""

    def __init__(self, device: str, steps: Steps, warm_up: int) -> None:
        self.device, self.at = device, {warm_up: 0.0, len(steps): 0.0}
        self.timed = [row for step in steps[warm_up:] for row in step]
        self.losses: list[float] = []

    def step(self, number: int) -> None:
        """Step `number` has been taken."""
        if number in self.at:
            self.at[number] = clock(self.device)

    def measured(self) -> dict[str, Any]:
        """Tokens and seconds between the two, the peak, the mean loss, and how long the rows were."""
        began, ended = self.at.values()
        return {
            "tokens": sum(map(len, self.timed)), "seconds": ended - began, "peak_bytes": peak_bytes(self.device),
            "loss": statistics.fmean(self.losses), "lengths": [len(row) for row in self.timed],
        }  # fmt: skip


def train_loraft(
    config: dict[str, Any], device: str, warm_up: int, gigabytes: float | None = None, keep: str | None = None
) -> dict[str, Any]:
    """`loraft train` on a config; the rows of each step go to the file `keep`, for others to train on them."""
    from loraft import train
    from loraft.events import Event
    from loraft.training.run_events import StepDone

    cap(gigabytes, device)
    run = RunConfig.model_validate(config)
    plan = plan_run(run)
    steps = [[plan.data.train[row].input_ids for row in rows] for rows in plan.batches.epoch(0)][: plan.steps]
    if keep is not None:
        Path(keep).write_text(json.dumps(steps))
    watch = Stopwatch(device, steps, warm_up)

    def observe(event: Event) -> None:
        if isinstance(event, StepDone):
            watch.losses.append(event.loss)
            watch.step(event.step)

    train(run, overwrite=True, observer=observe)
    return watch.measured() | {"predicted_bytes": plan.memory.peak_bytes}


def train_trl(
    folder: str, keep: str, device: str, warm_up: int, method: str, rank: int, setting: str
) -> dict[str, Any]:
    """TRL's SFTTrainer on the same lines; the setting names its attention."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=setting, device_map={"": device},
        quantization_config=four_bits if method == "qlora" else None,
    )  # fmt: skip
    adapter = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    liger = device == "cuda" and find_spec("liger_kernel") is not None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sft(model, tokenizer, json.loads(Path(keep).read_text()), device, warm_up, adapter, use_liger_kernel=liger)


def train_unsloth(
    folder: str, keep: str, device: str, warm_up: int, method: str, rank: int, setting: str
) -> dict[str, Any]:
    """Unsloth's model in SFTTrainer, as its notebooks have it, on the same lines."""
    from unsloth import FastLanguageModel  # before trl, which it changes

    steps: Steps = json.loads(Path(keep).read_text())
    longest = max(sum(map(len, step)) for step in steps)
    model, tokenizer = FastLanguageModel.from_pretrained(
        folder, max_seq_length=longest, dtype=torch.bfloat16, load_in_4bit=method == "qlora"
    )
    model = FastLanguageModel.get_peft_model(
        model, r=rank, lora_alpha=rank, lora_dropout=0, bias="none", target_modules=LINEAR,
        use_gradient_checkpointing=False,
    )  # fmt: skip
    return sft(model, tokenizer, steps, device, warm_up, None)


def sft(
    model: Any, tokenizer: Any, steps: Steps, device: str, warm_up: int, adapter: Any, **more: Any
) -> dict[str, Any]:
    """SFTTrainer over lines that are packed already, one an optimizer step, each row seeing itself alone."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    watch = Stopwatch(device, steps, warm_up)

    class Clock(TrainerCallback):
        """Tells the stopwatch of steps."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            reset_peak(device)

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            watch.step(state.global_step)

    joined = [(list(chain.from_iterable(rows)), [len(row) for row in rows]) for rows in steps]
    lines = [{"input_ids": ids, "labels": ids, "seq_lengths": lengths} for ids, lengths in joined]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(lines), peft_config=adapter,
            callbacks=[Clock()],
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=1, num_train_epochs=1, bf16=True, padding_free=True,
                max_length=None, train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
                learning_rate=1e-4, lr_scheduler_type="constant", optim="adamw_torch_fused", logging_steps=1,
                gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True,
                use_cpu=device == "cpu", **more,
            ),
        )  # fmt: skip
        trainer.train()
    watch.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return watch.measured()


def longest_row(
    config: dict[str, Any], rows: str, sizes: dict[str, Any], device: str, gigabytes: float, most: int, scale: float
) -> dict[str, Any]:
    """Train one step of one row: the longest that the plan has room for, times `scale`, and at most `most` tokens."""
    run = RunConfig.model_validate(config)

    def planned(tokens: int) -> float:
        """The memory of a row of so many tokens, as a share of what there is: the GPU's or the host's."""
        write_rows(Path(rows), sizes["vocab_size"], [tokens])
        stated = StatedDevice("cuda", int(gigabytes * 1e9)) if device == "cuda" else None
        plan = plan_run(run, stated)
        room = plan.placement.available_bytes if device == "cuda" else 1e9 * gigabytes
        return max(plan.memory.peak_bytes / room, plan.memory.host_bytes / psutil.virtual_memory().available)

    fits = longest(planned, most)
    tokens = max(LEAST_ROW, int(fits * scale))
    write_rows(Path(rows), sizes["vocab_size"], [tokens])
    cap(gigabytes, device)
    began = time.perf_counter()
    try:
        found = train_loraft(config, device, warm_up=0)
    except (OutOfMemoryError, ResourceError, torch.OutOfMemoryError) as error:
        return {"tokens": tokens, "planned": fits, "failed": str(error).splitlines()[0]}
    return {"tokens": found["tokens"], "planned": fits, "peak_bytes": found["peak_bytes"],
            "seconds": time.perf_counter() - began}  # fmt: skip


def longest(share: Callable[[int], float], most: int) -> int:
    """The most tokens whose share of the memory is within what is filled: it grows nearly evenly with them."""
    low, high = LEAST_ROW, most
    if share(high) <= FILLED:
        return high
    at_low, at_high = share(low), share(high)
    for _ in range(12):
        if high - low <= max(1, low // 100):
            break
        guess = low + int((high - low) * (FILLED - at_low) / (at_high - at_low))
        guess = min(max(guess, low + (high - low) // 20), high - (high - low) // 20, high - 1)
        guess = max(guess, low + 1)
        at_guess = share(guess)
        if at_guess <= FILLED:
            low, at_low = guess, at_guess
        else:
            high, at_high = guess, at_guess
    return low


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": prepare, "loraft": train_loraft, "trl": train_trl, "unsloth": train_unsloth, "row": longest_row,
}  # fmt: skip


if __name__ == "__main__":
    main()

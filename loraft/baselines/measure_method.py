"""A method, tried: planned, or trained for a few steps and measured, in the process that `compare_methods` starts.

Bytes are counted from the tensors, at the moment when they are there: weights once the model is loaded, gradients
before the first update, the optimizer's state after it. The peak is the device's on CUDA, on a CPU that of the
process's resident memory.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from loraft.adapters.inject import AdaptedModel
from loraft.adapters.model_card import shown
from loraft.baselines.compare_methods import TRUSTED, MeasuredCost, Question, asked_by
from loraft.config.choices import Method
from loraft.config.schema import RunConfig
from loraft.dataset.sampler import StepBatches
from loraft.errors import InvalidInputError, LoraftError
from loraft.events import ignored
from loraft.io.asked_process import answering
from loraft.io.held_memory import held_bytes, peak_bytes, reset_peak
from loraft.io.resources import disk_errors, memory_errors
from loraft.kernels.packed_experts import PackedExperts
from loraft.models.modules import modules_of
from loraft.models.remote_code import trusting
from loraft.planning.planned_memory import too_large
from loraft.planning.run_plan import RunPlan, base_notes, plan_run, scaled_rate
from loraft.training.built_model import build_model
from loraft.training.checkpoint import RunState
from loraft.training.run_dir import RunFolder
from loraft.training.save_run import save_weights
from loraft.training.train_step import Throughput, Trainer, take_step

MEMORY_OF = {"cpu": "the process (resident memory)", "cuda": "the GPU (what torch held)"}
LAST = 4
"""The loss that is compared is the mean of the last quarter of the steps: one batch alone says little."""

Tell = Callable[[Mapping[str, Any]], None]


def serve() -> None:
    """Answer the question on standard input, a JSON document a line; Ctrl-C is for the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell = answering()
    with trusting(TRUSTED in sys.argv[1:]):
        answer(asked_by(sys.stdin.buffer.read()), tell)


def answer(question: Question, tell: Tell) -> None:
    """Plan each method of a question, or where it names a folder train by it; what goes wrong is an answer too."""
    config, methods, steps, folder = question
    try:
        for method in methods:
            tried = trial_of(config, method, steps)
            tell(_planned(tried, method) if folder is None else _measured(tried, folder, tell))
    except LoraftError as error:
        tell({"kind": "ended", "error": error.as_json()})


def trial_of(config: RunConfig, method: Method, steps: int) -> RunConfig:
    """The run by another method, of so many steps.

    A learning rate that is set is that of the config's own method. Another takes it as the defaults of the two stand to
    one another: what a small update needs would wreck weights that are all trained.
    """
    changed: dict[str, Any] = {"max_steps": steps}
    scaled = partial(scaled_rate, before=config.method, after=method)
    rate, kwargs = config.training.learning_rate, config.training.lr_scheduler_kwargs
    if rate != "auto":
        changed["learning_rate"] = scaled(rate)
    if kwargs is not None:
        ends = {name: getattr(kwargs, name) for name in ("min_lr", "lr_end")}
        others = {name: scaled(end) for name, end in ends.items() if end is not None}
        changed["lr_scheduler_kwargs"] = kwargs.model_copy(update=others)
    return config.model_copy(update={"method": method, "training": config.training.model_copy(update=changed)})


def _planned(config: RunConfig, method: Method) -> dict[str, Any]:
    """What is known of a method before anything is loaded, or what is wrong with it."""
    try:
        plan = plan_run(config)
    except InvalidInputError as error:
        return {"kind": "refused", "method": method, "notes": [], "error": error.as_json()}
    return {
        "kind": "planned",
        "method": method,
        "model": shown(config.model.name_or_path),
        "task": config.task,
        "device": plan.placement.device_name,
        "memory_of": MEMORY_OF[plan.placement.device],
        "learning_rate": plan.config.training.learning_rate,
        "predicted": {**plan.memory.as_dict(), "available_bytes": plan.placement.available_bytes},
        "too_large": too_large(plan, plan.memory),
        "notes": [note for note in plan.notes if note not in base_notes(config)],  # no adapter is kept
    }


def _measured(config: RunConfig, folder: Path, tell: Tell) -> dict[str, Any]:
    plan = plan_run(config)
    name = plan.placement.device_name
    with memory_errors(f"{name} ran out of memory", remedy="Compare with a smaller batch or model."):
        cost = measure(plan, folder, lambda done, loss: tell({"kind": "step", "done": done, "loss": loss}))
    return {"kind": "measured", "cost": asdict(cost)}


@dataclass
class Tally:
    """What was counted while a method trained.

    Attributes:
        gradients: Their bytes before the first update.
    """

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    gradients: int = 0
    losses: list[float] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def take(self, window: StepBatches, loss: float, targets: int) -> None:
        """Count a step."""
        for example in (example for batch in window.batches for example in batch):
            self.rows += 1
            self.tokens += example.tokens
            self.digest.update(repr((example.input_ids, example.labels)).encode())
        self.trained_tokens += targets
        self.losses.append(loss)


def measure(plan: RunPlan, folder: Path, stepped: Callable[[int, float], None]) -> MeasuredCost:
    """Train as planned for its steps, and tell what that took; the adapter is written to `folder`."""
    device = plan.placement.device
    runtime = held_bytes(device)
    reset_peak(device)
    adapted = build_model(plan)
    loading = peak_bytes(device)
    weights = weight_bytes(adapted)
    run, tally = Trainer(plan, RunFolder(folder), adapted, str, ignored, []), Tally()
    run.optimizer.register_step_pre_hook(lambda *_: _count_gradients(tally, adapted))
    adapted.set_training(True)
    reset_peak(device)
    clock, warm = Throughput(0), (0.0, 0)
    for step, window in enumerate(_windows(plan), 1):
        prepared = run.prepare(window)
        loss = take_step(run, step, prepared, clock) / prepared.weight
        tally.take(window, loss, prepared.targets)
        if step == 1 < plan.steps:
            warm = (clock.seconds, clock.tokens)
        stepped(step, loss)
    state = {id(value): value for each in run.optimizer.state.values() for value in each.values()}.values()
    optimizer = bytes_of(state)
    # Paged state is in memory that both the GPU and the CPU see, of which torch's own peak knows nothing.
    peak = peak_bytes(device) + bytes_of(each for each in state if getattr(each, "is_paged", False))
    parts = {"runtime": runtime, **weights, "gradients": tally.gradients, "optimizer": optimizer}
    last = tally.losses[-max(1, plan.steps // LAST) :]
    return MeasuredCost(
        frozen_bytes=frozen_bytes(adapted, plan.config.quantization.type),
        trained_parameters=sum(each.numel() for each in adapted.trainable.values()),
        total_parameters=plan.shape.parameters_in_training,
        optim=plan.config.training.optim,
        gradient_checkpointing=bool(plan.config.training.gradient_checkpointing),
        memory={**parts, "activations": max(0, peak - sum(parts.values())), "peak_bytes": peak},
        loading_peak_bytes=loading,
        tokens_per_second=(clock.tokens - warm[1]) / (clock.seconds - warm[0]),
        seconds=clock.seconds,
        losses=tally.losses,
        last_loss=sum(last) / len(last),
        saved_bytes=_saved_bytes(run, folder, tally),
        rows=tally.rows,
        tokens=tally.tokens,
        trained_tokens=tally.trained_tokens,
        rows_digest=tally.digest.hexdigest(),
    )


def _windows(plan: RunPlan) -> Iterator[StepBatches]:
    """The windows of the plan's steps, over as many epochs as they take."""
    epochs = (plan.batches.windows(plan.data.train, epoch, 0, (0, 0)) for epoch in count())
    return islice(chain.from_iterable(epochs), plan.steps)


def _count_gradients(tally: Tally, adapted: AdaptedModel) -> None:
    if not tally.gradients:
        tally.gradients = bytes_of(each.grad for each in adapted.trainable.values())


def bytes_of(values: Iterable[object]) -> int:
    """The bytes of the tensors among some values, each storage once."""
    tensors = (value for value in values if isinstance(value, Tensor))
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def weight_bytes(adapted: AdaptedModel) -> dict[str, int]:
    """The bytes of a loaded model: its weights, and beside them the adapter's where all others are frozen."""
    model, trained = adapted.loaded.model, list(adapted.trainable.values())
    held = [part for each in (*model.parameters(), *model.buffers()) for part in stored(each)]
    held += in_4_bits(model)
    adapter = 0 if adapted.method == "full" else bytes_of(trained)
    return {"weights": bytes_of(held) - adapter, "adapter": adapter}


def stored(weight: Tensor) -> Iterator[Tensor]:
    """The tensors that a weight is stored in: itself, and of a quantized one its constants."""
    yield weight
    if isinstance(scales := getattr(weight, "SCB", None), Tensor):  # of int8
        yield scales
    state = getattr(weight, "quant_state", None)
    while state is not None:
        yield from (value for value in vars(state).values() if isinstance(value, Tensor))
        state = getattr(state, "state2", None)


def in_4_bits(model: nn.Module) -> list[Tensor]:
    """The tensors that experts in 4 bits are stored in."""
    held = (packed for module in modules_of(model, PackedExperts).values() for packed in module.packed.values())
    return [part for packed in held for part in packed.tensors]


def frozen_bytes(adapted: AdaptedModel, type_in_4_bits: str) -> dict[str, int]:
    """The bytes of the frozen weights by their precision, the largest part first."""
    found: dict[str, list[nn.Parameter]] = {}
    for each in adapted.loaded.model.parameters():
        if not each.requires_grad:
            name = str(each.dtype).removeprefix("torch.")
            found.setdefault(type_in_4_bits if hasattr(each, "quant_state") else name, []).append(each)
    sizes = {name: bytes_of(part for each in weights for part in stored(each)) for name, weights in found.items()}
    if experts := in_4_bits(adapted.loaded.model):
        sizes[type_in_4_bits] = sizes.get(type_in_4_bits, 0) + bytes_of(experts)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _saved_bytes(run: Trainer, folder: Path, tally: Tally) -> int:
    """The bytes of what training would leave: the adapter's file, written to see; a whole model is only counted."""
    if run.adapted.method == "full":
        return bytes_of(run.adapted.trainable.values())
    state = RunState(step=len(tally.losses), tokens=tally.trained_tokens, last_loss=tally.losses[-1])
    with disk_errors(folder, remedy="Free some space there."):
        saved = save_weights(run, state, folder, run.adapted)
    return sum(path.stat().st_size for path in saved.glob("*.safetensors"))

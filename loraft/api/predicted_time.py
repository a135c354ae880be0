"""How long a step takes on a GPU whose rates are known: operations counted from the plan over what its maker states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch

from loraft.config.gpus import Gpu
from loraft.dataset.sampler import batch_sampler
from loraft.models.quantize import quantized_bytes
from loraft.planning.run_plan import RunPlan
from loraft.tokenization.examples import Example

USED = (0.25, 0.55)
"""The share of the stated rate that a step's operations are assumed to get, norms and all between the products counted
in: an assumption, which no GPU has confirmed."""
LAUNCHED = 124
"""Kernels of a layer's step, forward and backward, with QLoRA: as counted on the device of tests/cuda_rehearsal."""
LAUNCH = (20e-6, 5e-6)
"""Seconds that the host takes to launch one, at worst and at best: assumed too."""
UPDATED = 28
"""Bytes that AdamW reads and writes for each trained number: the number, its gradient and two moments."""


class Read(NamedTuple):
    """What a stack of layers reads in a step, on average: its tokens, padding included, and their squares by row."""

    tokens: float
    squares: float


@dataclass(frozen=True)
class StepWork:
    """What a step does.

    Attributes:
        products: Multiplications and additions of weights with what goes into them.
        attention: Those of queries, keys and values.
        weights: The bytes that products read of the model.
        besides: The bytes that are read and written to dequantize weights and to update what is trained.
        launches: Kernels.
    """

    products: float
    attention: float
    weights: float
    besides: float
    launches: float

    @property
    def operations(self) -> float:
        """All multiplications and additions that are counted."""
        return self.products + self.attention

    def seconds(self, gpu: Gpu, used: float, launch: float) -> float:
        """How long it takes where so much of the rate is used, and a launch takes so long."""
        bandwidth = gpu.gigabytes_a_second * 1e9
        computed = max(self.operations / (used * gpu.teraflops * 1e12), self.weights / bandwidth)
        return max(computed + self.besides / bandwidth, self.launches * launch)


def predicted_time(plan: RunPlan) -> tuple[dict[str, Any] | None, str | None]:
    """The fastest and the slowest that steps are expected to be, and what that stands on; or why nothing is said."""
    gpu, why = rated_gpu(plan)
    alone = plan.config.training.gradient_accumulation_steps
    if gpu is not None and alone != plan.batches.accumulation:
        why = "what ranks wait for one another is not counted; it is told by strategy"
    if gpu is None or why is not None:
        return None, f"no time is predicted: {why}"
    tokens, work = work_of_a_step(plan)
    slowest, fastest = (work.seconds(gpu, used, launch) for used, launch in zip(USED, LAUNCH, strict=True))
    least, most = (round(100 * share) for share in USED)
    rates = f"{gpu.teraflops:g} TFLOPS in 16 bits and {gpu.gigabytes_a_second:,g} GB/s"
    predicted = {
        "milliseconds_a_step": _range(1e3 * fastest, 1e3 * slowest),
        "tokens_per_second": _range(tokens / slowest, tokens / fastest),
        "all_steps_seconds": _range(plan.steps * fastest, plan.steps * slowest),
        "teraflop_a_step": two_figures(work.operations / 1e12),
        "assumed": f"{least} to {most} % of {rates}, which the maker states; measured on no GPU",
    }
    return predicted, None


def rated_gpu(plan: RunPlan) -> tuple[Gpu | None, str | None]:
    """The GPU whose rates a time can be told by, or why none can."""
    gpu, dtype = plan.placement.gpu, plan.placement.dtype
    if plan.placement.device != "cuda":
        return None, "no rate is known of a CPU, where `measure=5` takes five steps"
    if gpu is None:
        return None, "which GPU it is, or its rates, are not known; `gpu_name` plans for one that is"
    reasons = {
        "rates are known of products in 16 bits, and model.dtype is float32": dtype == torch.float32,
        "this GPU multiplies float16 and no bfloat16": dtype == torch.bfloat16 and not gpu.bfloat16,
        "model.stream_layers waits for main memory, at a rate that is not known": plan.config.model.stream_layers,
        "how many experts of a mixture take a token is not counted": plan.shape.family.experts is not None,
    }
    why = next((why for why, is_so in reasons.items() if is_so), None)
    return (gpu, None) if why is None else (None, why)


def _range(least: float, most: float) -> dict[str, float]:
    return {"from": two_figures(least), "to": two_figures(most)}


def two_figures(number: float) -> float:
    """A number to two figures: what is predicted is no better than that."""
    return float(f"{number:.2g}")


def work_of_a_step(plan: RunPlan) -> tuple[float, StepWork]:
    """The tokens of a step of the first epoch on average, and what is done with them.

    A product takes two operations a weight and token forward, as many backward for what goes into it, and where the
    weight is trained as many again; layers below the lowest trained one have no backward, and those that are
    checkpointed go forward twice. Attention's two products are counted by the square of a row, half of it where tokens
    look back alone, and two and a half times backward: its weights are computed again there. What preferences are
    compared with is read forward alone.
    """
    shape, training = plan.shape, plan.config.training
    sampler = batch_sampler(plan.config, plan.data.train, plan.data.train_sources)
    batches = [[plan.data.train[row] for row in batch] for batch in sampler.epoch(0)]
    steps = sampler.steps(0)
    again, whole, compared = bool(training.gradient_checkpointing), shape.targets is None, _passes_to_compare(plan)
    products = attention = weights = besides = launches = most = 0.0
    matrices, width, micro = iter(shape.matrices), plan.placement.dtype.itemsize, len(batches) / steps
    for stack, depth in shape.depths.items():
        read, layer, kept = _read(plan, stack, batches, steps), shape.layers[stack], shape.graph_layers(stack)
        looks_back = shape.family.kind == "decoder" or (stack == "decoder" and len(shape.depths) > 1)
        for number, (plain, packed) in enumerate(islice(matrices, depth)):
            passes = 2 + again if number >= depth - kept else 1
            reads = passes + compared
            products += 2 * read.tokens * (plain + packed) * (reads + whole)
            scores = 4 * read.squares * layer.hidden / (2 if looks_back else 1)
            attention += scores * ((passes + 1.5 if passes > 1 else 1) + compared)
            weights += micro * width * (plain + packed) * (reads + whole)
            stored = quantized_bytes(packed, 0, shape.quantization)
            besides += micro * reads * (stored + width * packed) if packed else 0
            launches += micro * LAUNCHED * reads / 2
        if training.tiled_mlp and not again:
            products += 2 * read.tokens * kept * layer.hidden * (layer.mlp_outputs + layer.inner - layer.hidden)
        most = max(most, read.tokens)
    if shape.targets is not None:
        products += 2 * most * shape.targets.parameters * (3 + again)
    if plan.task.generates:
        head = shape.vocabulary * list(shape.layers.values())[-1].hidden
        trained = sum(example.trained for batch in batches for example in batch) / steps
        trains_head = whole or bool(shape.targets and shape.targets.saved)
        products += 2 * trained * head * (2 + trains_head + compared)
        weights += micro * width * head * (2 + trains_head + compared)
    besides += UPDATED * shape.trainable_parameters
    tokens = sum(example.tokens for batch in batches for example in batch) / steps
    return tokens, StepWork(products, attention, weights, besides, launches)


def _passes_to_compare(plan: RunPlan) -> int:
    """How often a step reads rows besides: its own by the model before training, and mismatched answers by both."""
    if not plan.task.has_reference(plan.config):
        return 0
    return (not plan.rereads_rows) + (2 if plan.config.preference.loss == "kto" else 0)


def _read(plan: RunPlan, stack: str, batches: Iterable[Sequence[Example]], steps: int) -> Read:
    """What a stack reads in a step, on average."""
    tokens = squares = 0
    for batch in batches:
        lengths = [length for example in batch for length in plan.task.read_by(stack, example)]
        if not plan.layout.packed:
            lengths = [plan.layout.filled(max(lengths))] * len(lengths)
        tokens += sum(lengths)
        squares += sum(length * length for length in lengths)
    return Read(tokens / steps, squares / steps)

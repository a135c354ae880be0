"""What a run will need, told before a weight is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from loraft.config.choices import Checkpointing
from loraft.config.sections import QuantizationSection
from loraft.io.held_memory import held_bytes
from loraft.kernels.layer_stream import SLOTS
from loraft.kernels.packed_attention import PRODUCTS_UP_TO
from loraft.kernels.transfer import pinned_bytes
from loraft.models.quantize import quantized_bytes
from loraft.planning.base_weights import NO_EXPERTS, ExpertSizes, StackSizes
from loraft.planning.product_kernels import kept_kernels

HOLES, HOLES_OF_QUANTIZED = 1.25, 1.35
"""What glibc's heap takes for activations, in proportion to their bytes: measured, as they come and go, and as weights
that are dequantized for each product come and go between them."""


@dataclass(frozen=True)
class TrainingSizes:
    """The sizes that decide how much memory a run needs.

    Attributes:
        frozen_parameters: Frozen numbers that are stored plainly.
        trainable_parameters: Trained numbers, all float32.
        dtype_bytes: The bytes of a number of `model.dtype`, in which frozen weights and activations are.
        batch_targets: Trained tokens of the largest batch.
        chunk_targets: The most targets whose logits are held at once.
        vocabulary: What a target is one of: the entries of the vocabulary, or the classes.
        whole_model: Every weight is trained.
        head_trained: The head is among what is trained, so that its loss is the slower one.
        quantization: How the quantized weights are stored; None where none are.
        quantized_rows: The outputs of the modules whose weights these are.
        experts: The experts of a mixture in a layer.
        largest_trained: The numbers of the largest trained tensor.
        drops: Layers drop attention weights and hidden states in training.
        start_parameters: What an adapter began with, where it is kept and saved beside what is trained.
        streamed: The bytes of each layer that is fed to the device from the host.
        ends: Those of embeddings and head, where these are.
    """

    frozen_parameters: int
    quantized_parameters: int
    trainable_parameters: int
    dtype_bytes: int
    stacks: tuple[StackSizes, ...]
    batch_targets: int
    chunk_targets: int
    vocabulary: int
    whole_model: bool
    head_trained: bool
    quantization: QuantizationSection | None
    quantized_rows: int
    optimizer_bytes: int
    device: str
    largest_trained: int = 0
    drops: bool = False
    start_parameters: int = 0
    fused: bool = False
    experts: ExpertSizes = NO_EXPERTS
    streamed: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part at the peak of a training step.

    Attributes:
        weights: The frozen weights, or all of them where all are trained.
        adapter: The trained weights beside them.
        activations: What the forward pass keeps for the backward pass.
        logits: The logits of one chunk, and their gradient.
        runtime: The libraries themselves, on the CPU the process before a model is loaded, and kernels that are kept.
        host_weights: Of the host's memory, the layers that are fed to the device.
        host_inputs: Of the host's memory, what goes into each layer, where that is kept there.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int
    host_weights: int = 0
    host_inputs: int = 0

    @property
    def peak_bytes(self) -> int:
        """The sum of the device's parts."""
        total: int = sum(asdict(self).values())
        return total - self.host_bytes

    @property
    def host_bytes(self) -> int:
        """The sum of the host's parts, where the device has memory of its own."""
        return self.host_weights + self.host_inputs

    def as_dict(self) -> dict[str, int]:
        """The device's parts and their sum; then those of the host, where there are any."""
        parts = asdict(self)
        of_host = {name: parts.pop(name) for name in ("host_weights", "host_inputs")}
        return parts | {"peak_bytes": self.peak_bytes} | {name: size for name, size in of_host.items() if size}


def predict(sizes: TrainingSizes, *, checkpointing: Checkpointing) -> MemoryPlan:
    """The memory of a training step at its peak; with `checkpointing` one layer's activations are held at a time."""
    quantized = quantized_bytes(sizes.quantized_parameters, sizes.quantized_rows, sizes.quantization)
    weights = sizes.frozen_parameters * sizes.dtype_bytes + quantized
    weights -= sum(sizes.streamed) - SLOTS * max(sizes.streamed, default=0)
    weights -= sum(sizes.ends) - max(sizes.ends, default=0)
    trained, width = 4 * sizes.trainable_parameters, sizes.dtype_bytes
    activations, logits = (_on_cuda if sizes.device == "cuda" else _on_cpu)(sizes, checkpointing=checkpointing)
    layers = 1 if checkpointing else max((stack.graph_layers for stack in sizes.stacks), default=0)
    return MemoryPlan(
        weights=weights + trained if sizes.whole_model else weights,
        adapter=0 if sizes.whole_model else trained + 4 * sizes.start_parameters,
        gradients=trained,
        optimizer=sizes.optimizer_bytes,
        activations=activations + sizes.dtype_bytes * sizes.experts.beside(layers),
        logits=logits,
        # torch.cuda's own peak, which is what is compared, leaves out the context.
        runtime=0 if sizes.device == "cuda" else held_bytes("cpu") + kept_kernels(sizes.stacks) * (width == 2),
        host_weights=sum(map(pinned_bytes, (*sizes.streamed, *sizes.ends))),
        host_inputs=sum(
            stack.graph_layers * pinned_bytes(sizes.dtype_bytes * stack.inputs // stack.graph_layers)
            for stack in sizes.stacks
            if checkpointing == "offload" and stack.graph_layers
        ),
    )


def _cast_weights(sizes: TrainingSizes) -> int:
    """The 16-bit copies of float32 weights that autocast keeps for a forward pass, where all are trained."""
    return sizes.dtype_bytes * sizes.trainable_parameters if sizes.whole_model and sizes.dtype_bytes < 4 else 0


def _on_cpu(sizes: TrainingSizes, *, checkpointing: Checkpointing) -> tuple[int, int]:
    """Activations and two gradients of a layer's widest tensor, as the heap holds them; and the logits of a chunk.

    Where all weights are trained their gradients come as activations go, and the largest twice, before it is added.
    """
    kept = sum(_kept(stack, sizes, checkpointing=checkpointing) for stack in sizes.stacks)
    gradients = sum(
        sizes.dtype_bytes * (2 * stack.at_once * stack.layer.inner + stack.batch_tokens * stack.layer.hidden)
        + sizes.dtype_bytes * stack.of_a_tile(fused=sizes.fused)
        for stack in sizes.stacks
    )
    holes = HOLES if sizes.quantization is None else HOLES_OF_QUANTIZED
    held = int((1 if checkpointing else holes) * (kept + gradients))
    if sizes.whole_model:
        last = sum(_one_layer(stack, sizes) for stack in sizes.stacks) + gradients
        held = max(held - 4 * sizes.trainable_parameters, last + (4 + sizes.dtype_bytes) * sizes.largest_trained)
    return _cast_weights(sizes) + held, _chunk_bytes(sizes)


def _on_cuda(sizes: TrainingSizes, *, checkpointing: Checkpointing) -> tuple[int, int]:
    """Activations as the backward pass has them, and what the loss, which comes before it, takes beyond that.

    A layer that goes backward holds up to four and a half tensors of its inner width, gradients most of them, by fused
    kernels one and a half, or fewer and a weight in few bits once more in 16: counted on the device of
    tests/cuda_rehearsal. Gradients of weights come to be as activations go; at the loss there are none yet, and of
    checkpointed layers there is what goes into them.
    """
    width, trained = sizes.dtype_bytes, 4 * sizes.trainable_parameters
    one_layer = sum(_one_layer(stack, sizes) for stack in sizes.stacks)
    kept = sum(_kept(stack, sizes, checkpointing=checkpointing) for stack in sizes.stacks)
    casts = _cast_weights(sizes) if sizes.whole_model or checkpointing else width * sizes.trainable_parameters
    backward = 0
    for stack in sizes.stacks:
        wide, layer = stack.at_once * width * stack.layer.inner, stack.layer
        unpacked = width * layer.hidden * layer.inner if sizes.quantization is not None else 0
        held = (3 if layer.fuses and sizes.fused else 9) * wide // 2
        backward += max(held, wide + unpacked) + 2 * stack.batch_tokens * width * layer.hidden
        backward += width * stack.of_a_tile(fused=sizes.fused)
    states = 3 * width * sizes.batch_targets * sizes.stacks[-1].layer.hidden
    at_loss = kept - (one_layer if checkpointing else 0) + casts + _chunk_bytes(sizes) + states
    activations = max(kept + casts + backward - trained * sizes.whole_model, one_layer + backward)
    return activations, max(0, at_loss - trained - activations)


def _chunk_bytes(sizes: TrainingSizes) -> int:
    """The logits of one chunk, and their gradient.

    A frozen head's logits become their own gradient, on a CPU a few rows at a time, on CUDA by way of a float32 copy.
    """
    a_logit = sizes.dtype_bytes + (4 if sizes.device == "cuda" else 0)
    if sizes.head_trained:
        a_logit = 8 + 2 * sizes.dtype_bytes
    return min(sizes.batch_targets, sizes.chunk_targets) * sizes.vocabulary * a_logit


def _kept(stack: StackSizes, sizes: TrainingSizes, *, checkpointing: Checkpointing) -> int:
    """What is held of one batch in one stack before a layer goes backward."""
    one_layer = _one_layer(stack, sizes)
    if not checkpointing:
        return one_layer * stack.graph_layers
    inputs = sizes.dtype_bytes * stack.inputs
    if checkpointing == "offload":  # the layer's own, and that of the one below, which is on its way
        inputs = min(inputs, 2 * inputs // max(stack.graph_layers, 1))
    return inputs + one_layer


def _one_layer(stack: StackSizes, sizes: TrainingSizes) -> int:
    """Activations of one batch in one layer.

    A layer keeps each linear module's output, both norms' outputs and the attention's, and of the feed-forward part
    the activation, its product with the gate where there is one, and what an activation function that is written out
    keeps of its steps. Where all weights are trained each norm keeps its input and its output in float32 besides; on
    the CPU the attention weights of short rows are kept too.
    """
    layer, width = stack.layer, sizes.dtype_bytes
    inside = layer.inner_tensors(fused=sizes.fused) * layer.inner
    if stack.in_tiles:
        inside = layer.hidden - layer.mlp_outputs
    a_token = width * (layer.linear_outputs + inside + 3 * layer.hidden)
    if sizes.whole_model and width < 4:
        a_token += 16 * layer.hidden
    products_up_to = PRODUCTS_UP_TO[torch.float32 if width == 4 else torch.bfloat16]
    if sizes.device == "cpu" and (sizes.drops or stack.longest_row <= products_up_to):
        a_token += width * layer.heads * stack.longest_row
    if sizes.drops:
        a_token += stack.dropped(width, sizes.device)
    a_token += stack.update.of_a_token(width, sizes.device)
    return stack.batch_tokens * a_token

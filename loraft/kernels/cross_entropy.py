"""The summed negative log-likelihood of targets, from hidden states: never more than a chunk of logits is held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 * 2**20
"""The most that the logits of one chunk would take in float32 on a CPU."""
OF_A_GPU, MOST_OF_A_GPU = 1 / 48, 2**30
"""The share of a GPU's memory that they may take there, and the most: 512 MiB of 24 GiB."""
TILE = 128
"""On a GPU chunks are a multiple of so many targets, as products are computed in tiles of that."""
ROWS_IN_CACHE = 16
"""Rows of logits whose softmax is taken in float32 at once: few enough to stay in a CPU's cache."""


def targets_in_chunk(vocabulary: int, gpu_bytes: int | None = None) -> int:
    """The targets whose float32 logits over `vocabulary` entries are held at once.

    On a CPU they are few, so that what is done to a chunk finds it in the cache. A GPU of `gpu_bytes` wants many: each
    chunk is a product with the whole head.
    """
    if gpu_bytes is None:
        return max(16, CHUNK_BYTES // (4 * vocabulary))
    fitting = int(min(gpu_bytes * OF_A_GPU, MOST_OF_A_GPU)) // (4 * vocabulary)
    return max(TILE, fitting // TILE * TILE)


def chunk_on(device: torch.device, vocabulary: int) -> int:
    """`targets_in_chunk` on this device."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return targets_in_chunk(vocabulary, total)


def chunked_loss(
    hidden: Tensor, target_ids: Tensor, logits_of: Callable[[Tensor], Tensor], chunk: int, smoothing: float = 0.0
) -> Tensor:
    """The summed negative log-likelihood of `target_ids` in nats, -Σ log softmax(logits)[target], a float32 scalar.

    Where a gradient is wanted, the logits of a chunk are computed anew in the backward pass, so that at no time
    more than one chunk of them is held.

    Args:
        hidden: `[targets, hidden]`, the final hidden states that predict the targets.
        target_ids: `[targets]`.
        logits_of: From `[n, hidden]` to logits `[n, vocab]`.
        chunk: The most targets whose logits are held at once.
        smoothing: What of each target is spread over the whole vocabulary, as torch's `label_smoothing` has it.
    """

    def loss_of(part: Tensor, ids: Tensor) -> Tensor:
        return cross_entropy(logits_of(part).float(), ids, reduction="sum", label_smoothing=smoothing)

    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(target_ids), chunk):
        part, ids = hidden[start : start + chunk], target_ids[start : start + chunk]
        if torch.is_grad_enabled():
            total = total + checkpoint(loss_of, part, ids, use_reentrant=False, preserve_rng_state=False)
        else:
            total = total + loss_of(part, ids)
    return total


class _FrozenHead(torch.autograd.Function):
    """The loss over a head whose weight is not trained: its gradient is ready with it, and nothing is computed twice.

    With z = scale · (h Wᵀ + b), or its soft cap c · tanh(z / c), and p = softmax(z), the loss is -Σ log p[target] and
    its gradient by h is scale · (p - onehot(target)) W, times 1 - tanh² where there is a cap. With a smoothing of ε the
    onehot is (1 - ε) · onehot + ε / vocab.

    Source: Hsu et al. 2024, Liger Kernel, section 3.2 (https://arxiv.org/abs/2410.10989), without the gradient of W.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, target_ids: Tensor, head: HeadWeights, chunk: int, smoothing: float
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(target_ids), chunk):
            part = slice(start, start + chunk)
            logits = linear(hidden[part], head.weight, head.bias)
            block = ROWS_IN_CACHE if hidden.device.type == "cpu" else chunk
            for row in range(0, len(logits), block):
                rows = slice(row, row + block)
                ids = target_ids[part][rows]
                total += _losses_to_gradients(logits[rows], ids, head, smoothing, wanted=wanted)
            if gradient is not None:
                gradient[part] = logits @ head.weight
            del logits  # else it is held until the next ones are there
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None, None


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """A frozen linear head, and what the model does to its logits.

    Attributes:
        weight: `[vocab, hidden]`.
        bias: `[vocab]`, or None.
        scale: The factor on the logits.
        softcap: Logits become `softcap · tanh(logits / softcap)`.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


def _losses_to_gradients(
    logits: Tensor, target_ids: Tensor, head: HeadWeights, smoothing: float, *, wanted: bool
) -> Tensor:
    """The summed loss of some rows; where it is wanted, `logits` become the gradient by what the head gave."""
    z = logits.float() if head.scale == 1 else logits.float().mul_(head.scale)
    tanh = None
    if head.softcap is not None:
        tanh = z.div_(head.softcap).tanh_()
        z = tanh * head.softcap
    places = target_ids[:, None]
    wished = z.gather(1, places)
    if smoothing:
        wished = (1 - smoothing) * wished + smoothing * z.mean(1, keepdim=True)
    highest = z.amax(1, keepdim=True)
    z = z.sub_(highest).exp_()
    sums = z.sum(1, keepdim=True)
    if wanted:
        z.div_(sums).scatter_add_(1, places, torch.full_like(wished, smoothing - 1.0))
        if smoothing:
            z.sub_(smoothing / z.shape[1])
        if tanh is not None:
            z.mul_(1 - tanh.square())
        logits.copy_(z if head.scale == 1 else z.mul_(head.scale))
    return (sums.log() + highest - wished).sum()


def frozen_head_loss(
    hidden: Tensor, target_ids: Tensor, head: HeadWeights, chunk: int, smoothing: float = 0.0
) -> Tensor:
    """`chunked_loss` under a head that is not trained, in the dtype of `hidden`: at a third of its cost."""
    total: Tensor = _FrozenHead.apply(hidden, target_ids, head, chunk, smoothing)  # type: ignore[no-untyped-call]
    return total

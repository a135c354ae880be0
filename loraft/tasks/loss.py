"""The loss: the negative log-likelihood of the trained tokens, and nothing else.

Logits are never held for a whole batch: the head runs only where there is a target, over a chunk of targets at a
time.
Nothing is divided here: a sum is what adds up exactly over batches and ranks, and the loop divides it by the trained
tokens of its whole window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from loraft.dataset.sampler import AnyBatch, Batch, LabelledBatch, PairBatch
from loraft.models.class_logits import class_logits
from loraft.models.decoder_inputs import decoder_inputs
from loraft.models.registry import ModelSpec
from loraft.tokenization.examples import IGNORED

__all__ = [
    "CHUNK_BYTES",
    "ROWS_IN_CACHE",
    "ClassificationLoss",
    "HeadWeights",
    "LMLoss",
    "Loss",
    "chunked_loss",
    "frozen_head_loss",
    "targets_in_chunk",
]

CHUNK_BYTES = 64 * 2**20
"""The most that the logits of one chunk would take in float32."""
ROWS_IN_CACHE = 16
"""Rows of logits whose softmax is taken in float32 at once: few enough to stay in a CPU's cache."""


def targets_in_chunk(vocabulary: int) -> int:
    """The targets whose float32 logits over `vocabulary` entries fit in `CHUNK_BYTES`; at least 16."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def chunked_loss(hidden: Tensor, target_ids: Tensor, logits_of: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """The summed negative log-likelihood of `target_ids`, computed `chunk` targets at a time.

    Where a gradient is wanted, the logits of a chunk are computed anew in the backward pass, so that at no time
    more than one chunk of them is held.

    Args:
        hidden: `[targets, hidden]`, the final hidden states that predict the targets.
        target_ids: `[targets]`.
        logits_of: From `[n, hidden]` to logits `[n, vocab]`.
        chunk: The most targets whose logits are held at once.

    Returns:
        A float32 scalar, in nats.

    Source: L = -Σ log softmax(logits)[target].
    """

    def loss_of(part: Tensor, ids: Tensor) -> Tensor:
        return cross_entropy(logits_of(part).float(), ids, reduction="sum")

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
    its gradient by h is scale · (p - onehot(target)) W, times 1 - tanh² where there is a cap.

    Source: Hsu et al. 2024, Liger Kernel, section 3.2 (https://arxiv.org/abs/2410.10989), without the gradient of W.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target_ids: Tensor, head: HeadWeights, chunk: int) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(target_ids), chunk):
            part = slice(start, start + chunk)
            logits = linear(hidden[part], head.weight, head.bias)
            block = ROWS_IN_CACHE if hidden.device.type == "cpu" else chunk
            for row in range(0, len(logits), block):
                rows = slice(row, row + block)
                total += _losses_to_gradients(logits[rows], target_ids[part][rows], head, wanted=wanted)
            if gradient is not None:
                gradient[part] = logits @ head.weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


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


def _losses_to_gradients(logits: Tensor, target_ids: Tensor, head: HeadWeights, *, wanted: bool) -> Tensor:
    """The summed loss of some rows; where it is wanted, `logits` become the gradient by what the head gave."""
    z = logits.float() if head.scale == 1 else logits.float().mul_(head.scale)
    tanh = None
    if head.softcap is not None:
        tanh = z.div_(head.softcap).tanh_()
        z = tanh * head.softcap
    places = target_ids[:, None]
    of_targets = z.gather(1, places)
    highest = z.amax(1, keepdim=True)
    z = z.sub_(highest).exp_()
    sums = z.sum(1, keepdim=True)
    if wanted:
        z.div_(sums).scatter_add_(1, places, torch.full_like(of_targets, -1.0))
        if tanh is not None:
            z.mul_(1 - tanh.square())
        logits.copy_(z if head.scale == 1 else z.mul_(head.scale))
    return (sums.log() + highest - of_targets).sum()


def frozen_head_loss(hidden: Tensor, target_ids: Tensor, head: HeadWeights, chunk: int) -> Tensor:
    """The summed negative log-likelihood of `target_ids` under a head that is not trained.

    The value and the gradient of `chunked_loss`, at a third of its cost.

    Args:
        hidden: `[targets, hidden]`, the final hidden states that predict the targets.
        target_ids: `[targets]`.
        head: The head's weights, in the dtype of `hidden`.
        chunk: The most targets whose logits are held at once.

    Returns:
        A float32 scalar, in nats.
    """
    total: Tensor = _FrozenHead.apply(hidden, target_ids, head, chunk)  # type: ignore[no-untyped-call]
    return total


class LMLoss(nn.Module):
    """A model that generates, whose forward takes a batch and gives the summed loss of its targets.

    The loss is a module's forward so that whatever wraps the module (for data parallel training, say) sees it.
    """

    def __init__(self, model: PreTrainedModel, family: ModelSpec, autocast: torch.dtype | None = None) -> None:
        """Wrap `model`.

        Args:
            model: The model itself, with adapters injected where there are any, not a wrapper around it.
            family: Says what the model does to its logits.
            autocast: The dtype of products; None computes in the weights' own.
        """
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._chunk = targets_in_chunk(model.config.vocab_size)
        self._softcap = _number(model.config, family.final_softcap)
        scale, divisor = _number(model.config, family.logit_multiplier), _number(model.config, family.logit_divisor)
        self._scale = (scale or 1.0) / (divisor or 1.0)
        if family.scales_if is not None and getattr(model.config, family.scales_if, False):
            self._scale *= float(model.config.hidden_size) ** -0.5
        self._bias: Tensor | None = getattr(model, family.logits_bias)[0] if family.logits_bias else None

    def weight(self, batch: AnyBatch) -> float:
        """What the summed loss of a batch is divided by: each target counts the same."""
        return batch.targets

    def forward(self, batch: Batch | PairBatch) -> Tensor:
        """The summed loss of the targets of `batch`, in nats: a float32 scalar."""
        with self._autocasting(batch):
            return self._sum(*self._predicting(batch))

    def of_rows(self, batch: Batch | PairBatch, targets: Sequence[int]) -> Tensor:
        """The summed loss of each row of `batch`, in nats: `[rows]`, float32.

        Args:
            batch: The rows.
            targets: How many targets each row has, in the order of the rows.
        """
        with self._autocasting(batch):
            parts = (torch.split(tensor, list(targets)) for tensor in self._predicting(batch))
            return torch.stack([self._sum(hidden, ids) for hidden, ids in zip(*parts, strict=True)])

    def _autocasting(self, batch: AnyBatch) -> torch.autocast:
        device = batch.input_ids.device.type
        return torch.autocast(device, dtype=self._autocast, enabled=self._autocast is not None)

    def _predicting(self, batch: Batch | PairBatch) -> tuple[Tensor, Tensor]:
        """`[targets, hidden]` and `[targets]`: the final hidden states, and what they predict."""
        if isinstance(batch, PairBatch):
            return self._decoded(batch)
        options: dict[str, Any] = {}
        if batch.row_lengths is not None:
            options = {"position_ids": batch.position_ids, "row_lengths": batch.row_lengths}
        stack = self.model.base_model
        hidden: Tensor = stack(input_ids=batch.input_ids, use_cache=False, **options).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, batch.target_positions), batch.target_ids

    def _decoded(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """What the decoder makes of the source and the targets before each."""
        encoder, decoder = self.model.get_encoder(), self.model.get_decoder()  # type: ignore[no-untyped-call]
        read = decoder_inputs(self.model, batch.labels)
        source = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        hidden = decoder(
            input_ids=read.masked_fill(read == IGNORED, 0),  # padding, which no real token looks at
            encoder_hidden_states=source,
            encoder_attention_mask=batch.attention_mask,
            use_cache=False,
        ).last_hidden_state
        real = batch.labels != IGNORED
        return hidden[real], batch.labels[real]

    def _sum(self, hidden: Tensor, target_ids: Tensor) -> Tensor:
        frozen = self._frozen_head(hidden.dtype)
        if frozen is not None:
            return frozen_head_loss(hidden, target_ids, frozen, self._chunk)
        return chunked_loss(hidden, target_ids, self._logits, self._chunk)

    def _frozen_head(self, dtype: torch.dtype) -> HeadWeights | None:
        """The head's weights, unless something in it is trained or it is no plain linear layer."""
        head = self._head
        if type(head) is not nn.Linear or head.weight.requires_grad or head.weight.dtype != dtype:
            return None
        bias = head.bias if self._bias is None else self._bias.to(dtype)
        return HeadWeights(head.weight, bias, self._scale, self._softcap)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden)
        if self._scale != 1:
            logits = logits * self._scale
        if self._bias is not None:
            logits = logits + self._bias
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)


class ClassificationLoss(nn.Module):
    """A classifier whose forward takes a batch and gives the summed loss of its rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: ModelSpec,
        autocast: torch.dtype | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        """Wrap `model`.

        Args:
            model: The model itself, with adapters injected where there are any, not a wrapper around it.
            family: Says where it reads what it decides by.
            autocast: The dtype of products; None computes in the weights' own.
            class_weights: `[classes]`, what a row of each class counts; None counts each the same.
        """
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._family = family
        self._class_weights = class_weights

    def weight(self, batch: AnyBatch) -> float:
        """What the summed loss of a batch is divided by: the weights of its rows' classes."""
        assert isinstance(batch, LabelledBatch), "a classifier takes labelled rows"
        return batch.targets if self._class_weights is None else float(self._class_weights[batch.labels].sum())

    def forward(self, batch: LabelledBatch) -> Tensor:
        """The summed, weighted loss of the rows of `batch`, in nats: a float32 scalar."""
        return self.summed(self.logits(batch), batch.labels)

    def summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The summed, weighted loss of rows with the scores `[rows, classes]` and the classes `[rows]`, in nats."""
        return cross_entropy(logits.float(), labels, weight=self._class_weights, reduction="sum")

    def logits(self, batch: LabelledBatch) -> Tensor:
        """`[rows, classes]`, the scores of the classes."""
        device = batch.input_ids.device.type
        with torch.autocast(device, dtype=self._autocast, enabled=self._autocast is not None):
            return class_logits(self.model, self._family, batch.input_ids, batch.attention_mask, batch.token_type_ids)


Loss = LMLoss | ClassificationLoss


def _number(config: object, attribute: str | None) -> float | None:
    value = getattr(config, attribute, None) if attribute else None
    return None if value is None or not math.isfinite(value) else float(value)

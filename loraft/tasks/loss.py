"""The losses of models on batches: the negative log-likelihood of what is trained, and nothing else.

Logits are never held for a whole batch: the head runs only where there is a target, over a chunk of targets at a time.
Nothing is divided here: a sum is what adds up exactly over batches and ranks, and the loop divides it by the trained
tokens of its whole window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from loraft.figures import label_figures
from loraft.kernels.cross_entropy import HeadWeights, chunk_on, chunked_loss, frozen_head_loss
from loraft.models.modules import (
    class_logits,
    decoder_inputs,
    head_of,
    pair_states,
    states_and_router_loss,
    text_states,
)
from loraft.models.registry import ModelSpec
from loraft.tasks.batches import Batch, BatchLayout, collate_labelled, collate_pairs, collate_texts
from loraft.tokenization.examples import IGNORED, Example


class TaskLoss(nn.Module, ABC):
    """A model whose forward takes a batch and gives its summed loss.

    The loss is a module's forward so that whatever wraps the module (for data parallel training, say) sees it.

    Attributes:
        keeps_casts: Autocast keeps the copies that it makes of trained weights until the forward ends; of layers that
            are gathered one after the other that would be the whole model.
        compares_with_kl: The rows of a step are compared with a number that all of them tell together, `kl`: a mean
            over rows, which the loop computes by `summed_kl` before it asks for any loss.
    """

    compares_with_kl: ClassVar[bool] = False

    def __init__(
        self,
        model: PreTrainedModel,
        family: ModelSpec,
        autocast: torch.dtype | None = None,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        """Wrap the model itself, with adapters injected where there are any, not a wrapper around it.

        Args:
            model: The model.
            family: Says what the model does to its logits.
            autocast: The dtype of products; None computes in the weights' own.
            class_weights: `[classes]`, what a row of each class counts; None counts each the same.
            label_smoothing: What of each target is spread over all that it could be, while the model is in training.
        """
        super().__init__()
        self.model = model
        self._family = family
        self._autocast = autocast
        self._class_weights = class_weights
        self._label_smoothing = label_smoothing
        self.keeps_casts = True
        self.kl = torch.zeros(())

    @property
    def _smoothing(self) -> float:
        """What of each target is spread now: an evaluation measures the likelihood of the targets themselves."""
        return self._label_smoothing if self.model.training else 0.0

    @staticmethod
    @abstractmethod
    def collate(examples: Sequence[Example], layout: BatchLayout) -> Batch:
        """Lay rows as `forward` takes them."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of `batch`, in nats: a float32 scalar."""

    def weight(self, batch: Batch) -> float:
        """What the summed loss of a batch is divided by: each target counts the same."""
        return batch.targets

    @abstractmethod
    def of_texts(self, batch: Batch) -> Tensor:
        """The summed loss of each text of `batch`, in nats: `[texts]`, float32; none is smoothed or weighs more."""

    def with_router_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss, and the auxiliary loss of a mixture's routers: the mean over real tokens."""
        raise NotImplementedError("a run of this task is planned without it")

    def with_decisions(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The summed loss and, where there is more to measure, `[numbers, rows]`: what `figures` are made of."""
        return self(batch), None

    def before_training(self, batch: Batch) -> Tensor:
        """`[rows, texts]`, float32, how likely each text that is compared was before training, in nats."""
        raise NotImplementedError("a loss that compares with nothing is not asked")

    def summed_kl(self, batch: Batch) -> Tensor:
        """What the rows of `batch` add to `kl`: a float32 scalar without a graph."""
        raise NotImplementedError("a loss that compares with no such number is not asked")

    @staticmethod
    def figures(decisions: Tensor) -> Mapping[str, float]:
        """What an evaluation tells besides its loss, of the decisions of all rows, on the host."""
        return {}

    def _autocasting(self, batch: Batch) -> torch.autocast:
        device = batch.input_ids.device.type
        enabled, keeps = self._autocast is not None, self.keeps_casts
        return torch.autocast(device, dtype=self._autocast, enabled=enabled, cache_enabled=keeps)


class LMLoss(TaskLoss):
    """The loss of a model that generates: of the tokens that it predicts."""

    def __init__(self, model: PreTrainedModel, family: ModelSpec, *rest: Any) -> None:
        super().__init__(model, family, *rest)
        self._head = None if family.plain else head_of(model, family)
        self._chunk = chunk_on(model.device, model.config.get_text_config().vocab_size)

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of the targets of `batch`, in nats: a float32 scalar."""
        with self._autocasting(batch):
            return self._sum(*self._predicting(batch), self._smoothing)

    def of_texts(self, batch: Batch) -> Tensor:
        """The summed loss of each text of `batch`, in nats: `[texts]`, float32; none is smoothed."""
        with self._autocasting(batch):
            parts = (torch.split(tensor, list(batch.text_targets)) for tensor in self._predicting(batch))
            return torch.stack([self._sum(hidden, ids) for hidden, ids in zip(*parts, strict=True)])

    @abstractmethod
    def _predicting(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`[targets, hidden]` and `[targets]`: the final hidden states, and what they predict.

        Of a model whose head is not known they are its own logits, `[targets, vocab]`.
        """

    def _sum(self, hidden: Tensor, target_ids: Tensor, smoothing: float = 0.0) -> Tensor:
        if self._head is None:
            return cross_entropy(hidden.float(), target_ids, reduction="sum", label_smoothing=smoothing)
        head, dtype = self._head.module, hidden.dtype
        # Something in the head is trained, or it is no plain linear layer.
        is_trained = any(weight.requires_grad for weight in head.parameters())
        if type(head) is not nn.Linear or is_trained or head.weight.dtype != dtype:
            return chunked_loss(hidden, target_ids, self._head.logits, self._chunk, smoothing)
        bias = head.bias if self._head.bias is None else self._head.bias.to(dtype)
        weights = HeadWeights(head.weight, bias, self._head.scale, self._head.softcap)
        return frozen_head_loss(hidden, target_ids, weights, self._chunk, smoothing)


class CausalLMLoss(LMLoss):
    """The loss of a decoder, which predicts the tokens of the text that it reads."""

    collate = staticmethod(collate_texts)

    def _predicting(self, batch: Batch) -> tuple[Tensor, Tensor]:
        states = partial(text_states, self.model, plain=self._head is None)
        if not self._family.alone:
            return _at_targets(states(**_read(batch)), batch), batch.labels
        assert batch.real is not None, "collate_texts tells what is padding"
        rows = zip(batch.input_ids, batch.real.sum(1).tolist(), strict=True)
        alone = [states(input_ids=row[None, :length])[0] for row, length in rows]
        return _at_targets(_in_lines(alone, batch.input_ids.shape[1]), batch), batch.labels

    def with_router_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss, and the auxiliary loss of a mixture's routers: the mean over real tokens."""
        with self._autocasting(batch):
            read = _read(batch) | {"attention_mask": batch.real}
            states, router_loss = states_and_router_loss(self.model, plain=self._head is None, **read)
            assert router_loss is not None, "a run is planned without it where a type has none"
            return self._sum(_at_targets(states, batch), batch.labels, self._smoothing), router_loss


def _read(batch: Batch) -> dict[str, Any]:
    """What a decoder reads of texts."""
    given: dict[str, Any] = {"input_ids": batch.input_ids}
    if batch.row_lengths is not None:
        given |= {"position_ids": batch.position_ids, "row_lengths": batch.row_lengths, "row_ends": batch.row_ends}
        given |= {"shared_prefix": batch.shared_prefix} if batch.shared_prefix else {}
    return given


def _in_lines(alone: Sequence[Tensor], time: int) -> Tensor:
    """The states of rows that were read each by itself, as in the lines of their batch: `[rows, time, …]`."""
    states = pad_sequence(list(alone), batch_first=True)
    return pad(states, (0, 0, 0, time - states.shape[1]))


def _at_targets(states: Tensor, batch: Batch) -> Tensor:
    """`[lines, time, …]` to `[targets, …]`: what predicts a target."""
    assert batch.target_positions is not None, "collate_texts tells where targets are"
    return states.flatten(0, 1).index_select(0, batch.target_positions)


class Seq2SeqLMLoss(LMLoss):
    """The loss of an encoder-decoder, whose decoder predicts each token of a target from those before it."""

    collate = staticmethod(collate_pairs)

    def _predicting(self, batch: Batch) -> tuple[Tensor, Tensor]:
        read = decoder_inputs(self.model, batch.labels)
        read = read.masked_fill(read == IGNORED, 0)  # padding, which no real token looks at
        states = partial(pair_states, self.model, plain=self._head is None)
        source, mask = batch.input_ids, batch.attention_mask
        assert mask is not None, "collate_pairs tells what is padding"
        if self._family.alone:
            rows = zip(source, mask, read, mask.sum(1).tolist(), (batch.labels != IGNORED).sum(1).tolist(), strict=True)
            alone = [states(ids[None, :n], of[None, :n], said[None, :m])[0] for ids, of, said, n, m in rows]
            hidden = _in_lines(alone, read.shape[1])
        else:
            hidden = states(source, mask, read)
        assert batch.target_positions is not None, "collate_pairs tells where targets are"
        return _at_targets(hidden, batch), batch.labels.flatten().index_select(0, batch.target_positions)


class ClassificationLoss(TaskLoss):
    """The loss of a classifier: of the class of each row."""

    collate = staticmethod(collate_labelled)

    @cached_property
    def _weights_here(self) -> Tensor:
        """The weights of the classes where the host reads them without waiting for the device."""
        assert self._class_weights is not None, "they are asked for where there are some"
        return self._class_weights.cpu()

    def weight(self, batch: Batch) -> float:
        """What the summed loss of a batch, still on the host, is divided by: the weights of its rows' classes."""
        if self._class_weights is None:
            return batch.targets
        return float(self._weights_here[batch.labels].sum())

    def forward(self, batch: Batch) -> Tensor:
        """The summed, weighted loss of the rows of `batch`, in nats: a float32 scalar."""
        return self.with_decisions(batch)[0]

    def with_decisions(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The summed loss, and `[2, rows]`: the right classes and those of the highest scores."""
        logits = self.logits(batch)
        loss = cross_entropy(
            logits.float(), batch.labels, weight=self._class_weights, reduction="sum", label_smoothing=self._smoothing
        )
        return loss, torch.stack([batch.labels, logits.argmax(1)])

    @staticmethod
    def figures(decisions: Tensor) -> Mapping[str, float]:
        """`accuracy` and `macro_f1` of `[2, rows]`, the right classes and those that were given."""
        right, given = decisions
        classes = int(decisions.max()) + 1
        counts = (torch.bincount(each, minlength=classes).numpy() for each in (right, given, right[right == given]))
        return label_figures(*counts)

    def of_texts(self, batch: Batch) -> Tensor:
        """The loss of each text of `batch`, in nats: `[texts]`, float32; no class weighs more than another."""
        return cross_entropy(self.logits(batch).float(), batch.labels, reduction="none")

    def logits(self, batch: Batch) -> Tensor:
        """`[rows, classes]`, the scores of the classes."""
        assert batch.attention_mask is not None, "collate_labelled tells what is padding"
        with self._autocasting(batch):
            return class_logits(self.model, self._family, batch.input_ids, batch.attention_mask, batch.token_type_ids)

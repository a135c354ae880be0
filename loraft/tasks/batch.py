"""Batches: rows as the model takes them, and how each task lays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraft.tokenization.examples import IGNORED, Example


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of a batch are laid.

    Attributes:
        packed: End to end in one line without padding; otherwise a line each, padded on the right.
        pad_id: The token at padded positions; no real token attends to one and none is trained.
        multiple_of: A line of rows end to end is filled to a multiple of this many tokens by one more row, of padding,
            where new lengths cost time.
    """

    packed: bool
    pad_id: int
    multiple_of: int = 1


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them.

    Attributes:
        input_ids: `[lines, time]`.
        labels: Of texts `[targets]`, the tokens to predict; of pairs `[rows, target time]`, -100 at padding; of
            classified texts `[rows]`, the numbers of the classes.
        tokens: The number of real tokens, padding left out.
        targets: How many tokens are predicted, or rows decided.
        attention_mask: `[rows, time]`, 1 at real tokens; None where no real token attends to padding.
        token_type_ids: `[rows, time]`, which of two texts a token is of; None where the model does not tell them apart.
        position_ids: `[lines, time]`, from 0 in each row, where the model is given them.
        row_lengths: The lengths of the rows that lie end to end in the one line, that of padding too; None where each
            line is a row.
        target_positions: Of texts `[targets]`, places in the flattened `[lines · time]` whose hidden state predicts a
            target.
    """

    input_ids: Tensor
    labels: Tensor
    tokens: int
    targets: int
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    row_lengths: tuple[int, ...] | None = None
    target_positions: Tensor | None = None

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: Any = {name: v.to(device, non_blocking=True) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate_texts(examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay texts as `layout` says.

    The first token of a row is never a target: nothing in its row predicts it.
    """
    lengths = [len(example.input_ids) for example in examples]
    padding = -sum(lengths) % layout.multiple_of if layout.packed else 0
    width = sum(lengths) + padding if layout.packed else max(lengths)
    input_ids = torch.full((1 if layout.packed else len(examples), width), layout.pad_id)
    position_ids = torch.zeros_like(input_ids)
    starts = np.cumsum([0, *lengths[:-1]]).tolist() if layout.packed else [i * width for i in range(len(examples))]
    targets: list[int] = []
    target_ids: list[int] = []
    for start, length, example in zip(starts, lengths, examples, strict=True):
        input_ids.view(-1)[start : start + length] = torch.tensor(example.input_ids)
        position_ids.view(-1)[start : start + length] = torch.arange(length)
        trained = [place for place in range(1, length) if example.labels[place] != IGNORED]
        targets += [start + place - 1 for place in trained]
        target_ids += [example.labels[place] for place in trained]
    if padding:
        position_ids.view(-1)[-padding:] = torch.arange(padding)
    return Batch(
        input_ids,
        labels=torch.tensor(target_ids, dtype=torch.long),
        tokens=sum(lengths),
        targets=len(target_ids),
        position_ids=position_ids,
        row_lengths=(*lengths, *([padding] if padding else [])) if layout.packed else None,
        target_positions=torch.tensor(targets, dtype=torch.long),
    )


def collate_pairs(examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay sources and targets, a line each, both padded on the right."""
    ids, mask = _padded([example.input_ids for example in examples], layout.pad_id)
    labels, _ = _padded([example.labels for example in examples], IGNORED)
    return Batch(ids, labels, *_counts(examples), attention_mask=mask)


def collate_labelled(examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay texts with a class, a line each, padded on the right."""
    ids, mask = _padded([example.input_ids for example in examples], layout.pad_id)
    types = None
    if any(example.token_type_ids is not None for example in examples):
        types, _ = _padded([example.token_type_ids or [0] * len(example.input_ids) for example in examples], 0)
    labels = torch.tensor([example.labels[0] for example in examples])
    return Batch(ids, labels, *_counts(examples), attention_mask=mask, token_type_ids=types)


def _counts(examples: Sequence[Example]) -> tuple[int, int]:
    return sum(example.tokens for example in examples), sum(example.trained for example in examples)


def _padded(rows: Sequence[Sequence[int]], filling: int) -> tuple[Tensor, Tensor]:
    """`[rows, time]` filled on the right, and where it is not filled."""
    width = max(len(row) for row in rows)
    filled = torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return filled, mask

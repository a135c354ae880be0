"""Rows as a model takes them: padded, a line each, or end to end in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from loraft.kernels.shared_prefix import places_of, shared_prefix
from loraft.kernels.transfer import to_device
from loraft.tokenization.examples import IGNORED, Example


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of a batch are laid.

    Attributes:
        packed: End to end in one line without padding; otherwise a line each, padded on the right.
        pad_id: The token at padded positions, where no real token attends to it; every vocabulary has 0.
        multiple_of: A line of rows end to end is filled to a multiple of this many tokens by one more row, of padding,
            where new lengths cost time.
        binary_digits: A line of one row is filled by padding to a length of so many binary digits, of four to 9, 18,
            36 or 72 say, where new lengths cost time and memory; 0 leaves lines as long as the longest of their batch.
        most: No line of one row is filled beyond this many tokens.
        shares: What all rows of a line begin with is in it once, where that is worth it.
    """

    packed: bool = False
    pad_id: int = 0
    multiple_of: int = 1
    binary_digits: int = 0
    most: int = 0
    shares: bool = False

    def filled(self, longest: int) -> int:
        """The length of lines that each hold a row, of which the longest has so many tokens."""
        step = 1 << max(0, longest.bit_length() - self.binary_digits) if self.binary_digits else 1
        return max(longest, min(-(-longest // step) * step, self.most))

    def positions(self, lengths: Sequence[int], shared: int = 0) -> int:
        """The positions of a batch of such rows, padding counted; end to end they have `shared` tokens once."""
        if not self.packed:
            return self.filled(max(lengths)) * len(lengths)
        return -(-(sum(lengths) - shared * (len(lengths) - 1)) // self.multiple_of) * self.multiple_of


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them.

    Attributes:
        input_ids: `[lines, time]`.
        labels: Of texts `[targets]`, the tokens to predict; of pairs `[rows, target time]`, -100 at padding; of
            classified texts `[rows]`, the numbers of the classes.
        tokens: Padding left out.
        text_targets: How many tokens of each text are predicted; of a text that is classified one class. Of texts that
            are compared the better and the worse of each pair come in turn.
        attention_mask: `[rows, time]`, 1 at real tokens; None where no real token attends to padding.
        token_type_ids: `[rows, time]`, which of two texts a token is of; None where the model does not tell them apart.
        position_ids: `[lines, time]`, from 0 in each row, where the model is given them.
        real: Of texts `[lines, time]`, 1 at real tokens and 0 at padding.
        row_lengths: Of rows that lie end to end in the one line, that of padding too; None where each line is a row.
        row_ends: `[rows + 1]`, int32, where these rows begin, and where the last one ends.
        shared_prefix: So many tokens, which all these rows begin with, are in the line once; the rows are whole in
            `row_lengths` and `row_ends`.
        target_positions: Of texts `[targets]`, places in the flattened `[lines · time]` that predict a target; of
            pairs, places in the flattened `[rows · target time]` that are one.
        reference: `[rows, texts]`, float32, the log-likelihood of each before training, where that is known: of a pair
            two, of an answer that stands alone one.
        desirable: Of answers that stand alone `[rows]`, bool, whether each is one to be given.
        mismatched: Of such, the same prompts with the answers of other rows, where their step has those.
        host: The same batch where it was laid, if that is not on the device.
    """

    input_ids: Tensor
    labels: Tensor
    tokens: int
    text_targets: tuple[int, ...]
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    real: Tensor | None = None
    row_lengths: tuple[int, ...] | None = None
    row_ends: Tensor | None = None
    shared_prefix: int = 0
    target_positions: Tensor | None = None
    reference: Tensor | None = None
    desirable: Tensor | None = None
    mismatched: Batch | None = None
    host: Batch | None = None

    @property
    def targets(self) -> int:
        """How many tokens are predicted, or rows decided."""
        return sum(self.text_targets)

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        moved: Any = {name: to_device(v, device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        mismatched = None if self.mismatched is None else self.mismatched.to(device)
        return replace(self, **moved, mismatched=mismatched, host=self)


def collate_texts(examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay texts as `layout` says; the first token of a row is never a target: nothing in its row predicts it."""
    rows = [torch.tensor(example.input_ids, dtype=torch.long) for example in examples]
    targets = tuple(example.trained for example in examples)
    labels = [torch.tensor(example.labels, dtype=torch.long) for example in examples]
    for row in labels:
        row[:1] = IGNORED
    if layout.packed:
        return _end_to_end(rows, torch.cat(labels), targets, layout)
    flat = _padded(labels, IGNORED, layout).flatten()
    places = (flat != IGNORED).nonzero().squeeze(1)
    return Batch(
        _padded(rows, layout.pad_id, layout),
        flat[places],
        tokens=sum(map(len, rows)),
        text_targets=targets,
        real=_padded([torch.ones_like(row) for row in rows], 0, layout),
        target_positions=places - 1,
    )


def _end_to_end(rows: Sequence[Tensor], labels: Tensor, targets: tuple[int, ...], layout: BatchLayout) -> Batch:
    """Rows in one line, what they all begin with once where `layout` has it so, and a row of padding that fills it."""
    lengths, tokens = [len(row) for row in rows], len(labels)
    prefix = shared_prefix([row.tolist() for row in rows]) if layout.shares else 0
    real = tokens - prefix * (len(rows) - 1)
    padding = -real % layout.multiple_of
    row_lengths = (*lengths, *([prefix + padding] if padding else []))
    whole = torch.cat([*rows, torch.full((row_lengths[-1] if padding else 0,), layout.pad_id)])
    positions = torch.cat([torch.arange(length) for length in row_lengths])
    places = (labels != IGNORED).nonzero().squeeze(1)
    predicting = places - 1
    if prefix:
        in_line, in_rows, _ = places_of(row_lengths, prefix)
        whole, positions, predicting = whole[in_rows], positions[in_rows], in_line[predicting]
    return Batch(
        whole[None],
        labels[places],
        tokens=tokens,
        text_targets=targets,
        position_ids=positions[None],
        real=torch.tensor([[1] * real + [0] * padding]),
        row_lengths=row_lengths,
        row_ends=torch.tensor([0, *row_lengths]).cumsum(0, dtype=torch.int32),
        shared_prefix=prefix,
        target_positions=predicting,
    )


def collate_pairs(examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay sources and targets, a line each, both padded on the right."""
    labels = _padded([torch.tensor(example.labels) for example in examples], IGNORED, layout)
    places = (labels.flatten() != IGNORED).nonzero().squeeze(1)
    return replace(_lines(examples, layout, labels), target_positions=places)


Lay = Callable[[Sequence[Example], BatchLayout], Batch]
"""How rows of one answer are laid."""


def collate_compared(lay: Lay, examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay the texts of each row one after the other, as `lay` does those of one answer.

    Of answers that stand alone those of other rows, behind the same prompts, are a batch of their own.
    """
    texts = [text for example in examples for text in example.texts]
    known = [example.reference for example in examples if example.reference is not None]
    labels = [example.desirable for example in examples if example.desirable is not None]
    others = [example.mismatched for example in examples if example.mismatched is not None]
    return replace(
        lay(texts, layout),
        reference=torch.tensor(known) if len(known) == len(examples) else None,
        desirable=torch.tensor(labels) if labels else None,
        mismatched=collate_compared(lay, others, layout) if others else None,
    )


def collate_labelled(examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay texts with a class, a line each, padded on the right."""
    types = None
    if any(example.token_type_ids is not None for example in examples):
        given = (example.token_type_ids or [0] * len(example.input_ids) for example in examples)
        types = _padded([torch.tensor(each) for each in given], 0, layout)
    return _lines(examples, layout, torch.tensor([example.labels[0] for example in examples]), types)


def _lines(examples: Sequence[Example], layout: BatchLayout, labels: Tensor, types: Tensor | None = None) -> Batch:
    rows = [torch.tensor(example.input_ids, dtype=torch.long) for example in examples]
    ids, mask = _padded(rows, layout.pad_id, layout), _padded([torch.ones_like(row) for row in rows], 0, layout)
    tokens, targets = sum(example.tokens for example in examples), tuple(example.trained for example in examples)
    return Batch(ids, labels, tokens, targets, attention_mask=mask, token_type_ids=types)


def _padded(rows: Sequence[Tensor], filling: int, layout: BatchLayout) -> Tensor:
    """`[rows, time]`, filled on the right."""
    padded = pad_sequence(list(rows), batch_first=True, padding_value=filling)
    return pad(padded, (0, layout.filled(padded.shape[1]) - padded.shape[1]), value=filling)

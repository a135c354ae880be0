"""How the answers of an encoder-decoder begin: as its targets did in training."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import nn

from loraft.models.decoder_inputs import decoder_inputs
from loraft.tokenization.row_renderer import RowRenderer
from loraft.tokenization.seq2seq_rows import Seq2SeqRenderer

__all__ = ["Beginning", "beginning"]


class Beginning(TypedDict, total=False):
    """What an answer begins with, by the names that the rules of generation have for it.

    Attributes:
        start: What the decoder reads first.
        first: What it must say first: the code of the target's language; None where that is the start. Absent where
            the tokenizer knows no languages.
    """

    start: int
    first: int | None


def beginning(model: nn.Module, renderer: RowRenderer) -> Beginning:
    """How answers begin; empty for a decoder alone, which goes on with its prompt.

    Raises:
        ModelError: The decoder has no start token.
    """
    if not isinstance(renderer, Seq2SeqRenderer):
        return {}
    device = next(model.parameters()).device
    target = torch.tensor([renderer.target_ids("")], dtype=torch.long, device=device)
    start = int(decoder_inputs(model, target)[0, 0])
    return Beginning(start=start, first=renderer.forced_bos_id) if renderer.knows_languages else Beginning(start=start)

"""What there is to say of the tokens that a run adds (`model.add_tokens`), before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from loraft.adapters.targets import TargetModules
from loraft.dataset.build import PreparedData
from loraft.figures import counted, listed
from loraft.models.modules import embedding_weight, output_head


def about_new_tokens(
    names: Sequence[str], model: PreTrainedModel, own_rows: int, targets: TargetModules | None
) -> Iterator[str]:
    """Where the rows of new tokens are in a model that has a place for them, and what training them costs."""
    if not names:
        return
    rows = len(embedding_weight(model))
    grown = f"the embeddings grow from {own_rows:,} rows to {rows:,}"
    where = grown if rows > own_rows else f"they have spare rows among the {rows:,} of the embeddings"
    yield f"{counted(len(names), 'new token', 'new tokens')} ({listed(names)}): {where}"
    if targets is None:
        yield "their rows begin as the mean of the rows before them, and are trained as every weight is"
        return
    tables = " and ".join(targets.rows)
    tied = output_head(model) is not None and len(targets.rows) == 1
    serves = ", and serve the head too, which is tied" if tied else ""
    yield (
        f"their rows of {tables} begin as the mean of the rows before them, and are trained alone: "
        f"{targets.row_parameters:,} parameters{serves}"
    )


def unseen_tokens(names: Sequence[str], ids: Sequence[int], data: PreparedData) -> Iterator[str]:
    """A sentence about the new tokens that no row has: nothing is learned of them."""
    left = set(ids)
    for example in (*data.train, *data.eval):
        if not left:
            return
        left.difference_update(example.input_ids, example.labels)
    if left:
        unseen = [name for name, number in zip(names, ids, strict=True) if number in left]
        rows = "of the first rows, which were looked at," if data.stream is not None else "of the rows"
        tokens, them = ("token", "it") if len(unseen) == 1 else ("tokens", "them")
        yield f"none {rows} has the new {tokens} {listed(unseen)}: nothing will be learned of {them}"

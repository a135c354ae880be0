"""A tokenizer that fits its model: with padding, with offsets where needed, with no token beyond the embeddings."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loraft.errors import ModelError
from loraft.models.hf_logging import quietly_reading

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Where a tokenizer's vocabulary is; without one of them transformers makes up an empty tokenizer."""


def read_tokenizer(
    folder: Path, *, name: str, embeddings: int, offsets: bool = True
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer in a folder, and what there is to say about it.

    Where it has no padding token its end-of-text token stands in: labels never derive from padding.

    Args:
        folder: Its folder.
        name: What the config calls it, for errors.
        embeddings: The rows of the model's embeddings.
        offsets: It must tell where in a text each token is: prompts and answers are one text. Marian's and M2M100's
            tokenizers cannot, and sources and targets are tokenized apart.

    Raises:
        ModelError: No tokenizer, one without offsets that are needed, or one with tokens beyond the embeddings.
    """
    if not any((folder / file).is_file() for file in FILES):
        raise ModelError("there is no tokenizer", where=name, remedy="Name the one to use in model.tokenizer.")
    with quietly_reading(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if offsets and not tokenizer.is_fast:
        raise ModelError("the tokenizer gives no offsets, and the loss mask needs them", where=name)
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= embeddings:
        raise ModelError(
            f"the tokenizer has tokens up to id {last}, and the model has {embeddings} embeddings",
            where=name,
            remedy="Use the tokenizer that the model was trained with.",
        )
    return tokenizer, _give_padding(tokenizer)


def _give_padding(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    stand_in = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is not None or stand_in is None:
        return ()
    tokenizer.pad_token = stand_in
    return (f"the tokenizer has no padding token: {stand_in} stands in, and no label depends on it",)

"""Whether the rows have tokens enough for an adapter that begins with the directions of what is read."""

from __future__ import annotations

from collections.abc import Iterable

from loraft.errors import AdapterError
from loraft.tokenization.examples import Example


def learned_from(example: Example) -> int:
    """The tokens of an example that directions are made of, by the stack that has fewer."""
    return min(len(example.input_ids), example.trained) if example.target_tokens else example.trained


def require_tokens(least: int, examples: Iterable[Example]) -> None:
    """Refuse `lora.init: eva` where there are fewer tokens than the directions that the highest rank needs.

    Raises:
        AdapterError: There are.
    """
    if sum(map(learned_from, examples)) < least:
        message = f"eva begins with {least} directions of what is learned, and the rows have fewer tokens than that"
        raise AdapterError(message, key="lora.init", remedy="Take a lower lora.r, more rows, or another lora.init.")

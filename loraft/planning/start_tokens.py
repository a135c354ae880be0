"""Whether the rows have tokens enough for an adapter that begins with the directions of what is read."""

from __future__ import annotations

from collections.abc import Iterable

from loraft.adapters.targets import TargetModules
from loraft.config.schema import RunConfig
from loraft.errors import AdapterError
from loraft.tokenization.examples import Example


def learned_from(example: Example) -> int:
    """The tokens of an example that directions are made of, by the stack that has fewer."""
    return min(len(example.input_ids), example.trained) if example.target_tokens else example.trained


def require_tokens(config: RunConfig, targets: TargetModules | None, epoch: Iterable[Example]) -> None:
    """Refuse `lora.init: eva` where the rows of the first epoch have fewer tokens than the highest rank.

    Raises:
        AdapterError: They have.
    """
    if config.lora.init != "eva" or targets is None:
        return
    least = max(targets.ranks.values())
    if sum(map(learned_from, epoch)) < least:
        message = f"eva begins with {least} directions of what is learned, and the rows have fewer tokens than that"
        raise AdapterError(message, key="lora.init", remedy="Take a lower lora.r, more rows, or another lora.init.")

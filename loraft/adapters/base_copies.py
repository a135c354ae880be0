"""Copies of the base's own weights in an adapter's file: peft saves them where a head or an embedding is adapted.

They are no part of the adapter where they equal the base's. Where they differ it was trained on other weights, such as
those of a vocabulary that grew, and on this base it would answer wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from loraft.errors import AdapterError, Problem

COPY = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.(?P<part>weight|bias)")
REMEDY = (
    "Name the base that it was trained on: --base-model MODEL. Where its vocabulary was made larger in training, let "
    "peft write base and adapter as one model: merge_and_unload(), then save_pretrained()."
)


def is_copy(key: str) -> bool:
    """Whether a tensor of an adapter's file is the base's."""
    return COPY.fullmatch(key) is not None


def name_of(key: str) -> str:
    """What the base calls it."""
    return COPY.sub(r"\g<module>.\g<part>", key)


def refuse_others(copies: Mapping[str, Tensor], weight: Callable[[str], Tensor], where: str) -> None:
    """Compare copies with the base's weights; on the meta device their sizes alone.

    Args:
        copies: The tensors by their keys in the adapter's file.
        weight: The base's for a key; raises AttributeError or KeyError where the base has none.
        where: The adapter's file, for errors.

    Raises:
        AdapterError: With every weight that is another than the base's.
    """
    problems = list(_differing(copies, weight, where))
    if problems:
        raise AdapterError.several(problems)


def _differing(copies: Mapping[str, Tensor], weight: Callable[[str], Tensor], where: str) -> Iterator[Problem]:
    for key, copy in sorted(copies.items()):
        name = name_of(key)
        try:
            own = weight(key)
        except (AttributeError, KeyError):
            yield Problem(f"it brings the {name} of its base, and this base has none", where, remedy=REMEDY)
            continue
        if own.shape != copy.shape:
            sizes = f"it is {list(copy.shape)} there, and {list(own.shape)} here"
            yield Problem(f"it brings the {name} of another base: {sizes}", where, remedy=REMEDY)
        elif own.device.type != "meta" and not _equal(copy, own):
            yield Problem(
                f"it brings the {name} of another base: its numbers are not this base's", where, remedy=REMEDY
            )


def _equal(copy: Tensor, own: Tensor) -> bool:
    """Whether two weights are one, as far as the narrower of their dtypes tells."""
    own = own.detach().to(copy.device)
    return torch.equal(copy.to(own.dtype), own) or torch.equal(copy, own.to(copy.dtype))

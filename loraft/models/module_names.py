"""Names of modules, compared by their path parts, the ones most like a name that does not exist, and adapters' own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from loraft.errors import AdapterError

ADAPTER = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEFAULT = "default"
"""What peft calls an adapter that nobody names."""
TAKEN = ("base", "none")
"""What the base without an adapter is called."""


def check_adapter_name(name: str) -> None:
    """Refuse a name that could mean a path, or the base.

    Raises:
        AdapterError: If it is not made of 1 to 64 letters, digits, `_` and `-`, or is `base` or `none`.
    """
    if not ADAPTER.fullmatch(name):
        raise AdapterError(
            f"{name!r} cannot be an adapter's name",
            where="--adapter",
            remedy="Use 1 to 64 letters, digits, underscores and hyphens.",
        )
    if name in TAKEN:
        message = f"{name!r} means the base without an adapter, and cannot be an adapter's name"
        raise AdapterError(message, where="--adapter", remedy="Give it another one: --adapter NAME=DIR.")


def in_peft(name: str) -> str:
    """What peft calls the adapter `name`: nothing that torch knows, and no part of the path of any module.

    peft keeps adapters in dictionaries of torch, where `type` or `keys` would hide a method, and tells one adapter's
    tensors from another's by looking for names in their paths: one called `model` would be found in all of them.
    """
    return name if name == DEFAULT else f"adapter-{name}"


def matches(module: str, name: str) -> bool:
    """Whether `name` is the full name of `module` or its last path parts."""
    return module == name or module.endswith(f".{name}")


def is_within(module: str, outer: str) -> bool:
    """Whether `module` is `outer` or lies inside it."""
    return module == outer or module.startswith(f"{outer}.")


def nearest(name: str, names: Iterable[str]) -> str:
    """The names most like `name`, or all of them where none is."""
    short = sorted({known.rpartition(".")[2] for known in names})
    close = difflib.get_close_matches(name.rpartition(".")[2], short, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else f"The model has {', '.join(short)}."

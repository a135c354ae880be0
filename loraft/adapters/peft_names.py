"""PEFT's names."""

from __future__ import annotations

import re

from loraft.errors import AdapterError

__all__ = ["check_adapter_name", "in_peft"]

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

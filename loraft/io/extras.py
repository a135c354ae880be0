"""Packages that not everybody needs: which extra of loraft brings each, said where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from loraft.errors import Problem

EXTRAS = {"gguf": "gguf", "rouge_score": "eval", "sacrebleu": "eval", "tensorboard": "tensorboard"}
"""The extra that brings a package, by the name that it is imported by."""


def lacking(
    package: str, what: str, *, key: str | None = None, parameter: str | None = None, where: str | None = None
) -> Problem | None:
    """The problem that a package of an extra is not installed; None where it is.

    Args:
        package: As it is imported.
        what: What needs it.
        key: The config key that asks for it.
        parameter: The parameter that does.
        where: What asks for it.
    """
    if find_spec(package) is not None:
        return None
    remedy = f"pip install 'loraft[{EXTRAS[package]}]'"
    message = f"{what} needs the package {package}, which is not installed"
    return Problem(message, where, key, remedy, parameter=parameter)

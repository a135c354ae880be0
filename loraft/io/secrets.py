"""Tokens and passwords, by their shapes and by the environment that has them: none gets into a file or a message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from loraft.errors import Problem

SHAPES = {
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{20,}",
    "a key of OpenAI or Anthropic": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a key of Weights & Biases": r"\bwandb_v\d+_\w{20,}|\b(?i:wandb[\W_]?(api)?[\W_]?key)\W{1,4}[0-9a-f]{40}\b",
    "a token of GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a token of GitLab": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a token of PyPI": r"\bpypi-[A-Za-z0-9_-]{40,}",
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}",
    "a token of Slack": r"\bxox[abpr]-[A-Za-z0-9-]{10,}",
    "a signed token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s:@]+@",
}
NAMED = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_KEY|CREDENTIAL")
"""What the names of variables hold whose values are secrets; those that end as below name places."""
PLACES = ("_PATH", "_FILE", "_DIR", "_URL", "_SOCK")
SHORTEST = 12
"""A value of fewer characters may be a word of any text."""


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, by the first that it has; None where it holds none."""
    shaped = (kind for kind, shape in SHAPES.items() if re.search(shape, text))
    held = (f"the value of {name}" for name, value in _of_environment(text) if value in text)
    return next(shaped, None) or next(held, None)


def redacted(text: str, key: str = "") -> str:
    """A text in which what kind of secret there was stands in the place of each.

    Some are known by the name before them, which is `key` where the text is the value of a mapping.
    """
    before = f"{key}: " if key else ""
    for kind, shape in SHAPES.items():
        text = re.sub(shape, partial(_told, f"[{kind}]", len(before)), before + text)[len(before) :]
    for name, value in _of_environment(text):
        text = text.replace(value, f"[the value of {name}]")
    return text


def _told(kind: str, start: int, found: re.Match[str]) -> str:
    """What stands in the place of a secret; what of it lies before `start` stays."""
    if found.end() <= start:
        return found[0]
    return found[0][: max(0, start - found.start())] + kind


def redacted_all(value: Any, key: str = "") -> Any:
    """A value of JSON that stands under `key`, with its texts `redacted`, the keys of its mappings among them."""
    if isinstance(value, str):
        return redacted(value, key)
    if isinstance(value, Mapping):
        return {redacted_all(name): redacted_all(inner, str(name)) for name, inner in value.items()}
    return [redacted_all(inner, key) for inner in value] if isinstance(value, list | tuple) else value


def redacted_problem(problem: Problem) -> Problem:
    """A problem without the tokens that an address, a key or what a library says may hold."""
    return Problem(**redacted_all(asdict(problem)))


def _of_environment(text: str) -> Iterator[tuple[str, str]]:
    """The variables of the environment that hold secrets which are no longer than `text`."""
    if len(text) < SHORTEST:  # as most are: there are many variables
        return
    for name, value in os.environ.items():
        if SHORTEST <= len(value) <= len(text) and NAMED.search(name) and not name.endswith(PLACES):
            yield name, value

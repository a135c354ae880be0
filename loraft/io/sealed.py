"""Small files that carry a checksum of what else they hold, so that a change is noticed: JSON objects, and settings.

One without a checksum was written by an earlier version, or by another tool: nothing is known of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "sealed"
"""The key of the checksum in an object."""
COMMENT = "# sha256 of all below, by which a change is noticed: "
"""How the first line of a text begins that carries its own."""


def sealed(facts: Mapping[str, object]) -> dict[str, object]:
    """An object with its checksum."""
    rest = {key: value for key, value in facts.items() if key != SEAL}
    return {**rest, SEAL: _digest(json.dumps(rest, sort_keys=True))}


def is_as_sealed(facts: Mapping[str, object]) -> bool:
    """Whether an object is what was sealed; one that never was is.

    Raises:
        TypeError: It is no object.
    """
    if not isinstance(facts, Mapping):
        raise TypeError("a seal is that of an object")
    return SEAL not in facts or facts == sealed(facts)


def read_sealed(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where it is missing, holds none, or is not as it was sealed."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and is_as_sealed(value) else {}


def sealed_text(text: str) -> str:
    """A text of settings behind a comment with its checksum."""
    return f"{COMMENT}{_digest(text)}\n{text}"


def is_text_as_sealed(file: Path) -> bool:
    """Whether a text is what was sealed; one that never was, or is not there, is."""
    if not file.is_file():
        return True
    first, _, rest = file.read_bytes().partition(b"\n")
    begins = COMMENT.encode()
    return not first.startswith(begins) or first.removeprefix(begins) == _digest(rest).encode()


def _digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()

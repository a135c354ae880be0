"""What is right and what is not, of one answer."""

from __future__ import annotations

import json


def is_exact_match(prediction: str, reference: str) -> bool:
    """Whether a prediction equals its reference, white space around both aside."""
    return prediction.strip() == reference.strip()


def is_valid_json(text: str) -> bool:
    """Whether a text is one JSON value by RFC 8259, which has no NaN and no Infinity."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")

"""Figures from texts."""

from __future__ import annotations

import json
from collections.abc import Sequence

__all__ = ["exact_match_rate", "is_exact_match", "is_valid_json", "valid_json_rate"]


def exact_match_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The share of predictions that equal their reference, white space around both aside.

    Raises:
        ValueError: If there are no predictions, or not one for each reference.
    """
    if not predictions:
        raise ValueError("exact match of no predictions")
    pairs = zip(predictions, references, strict=True)
    return sum(is_exact_match(prediction, reference) for prediction, reference in pairs) / len(predictions)


def is_exact_match(prediction: str, reference: str) -> bool:
    """Whether a prediction equals its reference, white space around both aside."""
    return prediction.strip() == reference.strip()


def valid_json_rate(texts: Sequence[str]) -> float:
    """The share of texts that are JSON, whole.

    Raises:
        ValueError: If there are no texts.
    """
    if not texts:
        raise ValueError("valid JSON among no texts")
    return sum(map(is_valid_json, texts)) / len(texts)


def is_valid_json(text: str) -> bool:
    """Whether a text is one JSON value by RFC 8259, which has no NaN and no Infinity."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")

"""Figures from counts and texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence


def perplexity(negative_log_likelihood: float, tokens: int) -> float:
    """exp(negative log-likelihood / tokens): infinite where that is beyond a float.

    Args:
        negative_log_likelihood: The sum over all trained tokens, natural logarithm. A mean of the means of
            batches would weigh the tokens of short batches more.
        tokens: How many tokens were summed over.

    Raises:
        ValueError: If there are no tokens.

    Source: Jurafsky and Martin, Speech and Language Processing, 3rd edition, chapter 3.
    """
    if tokens < 1:
        raise ValueError("perplexity of no tokens")
    try:
        return math.exp(negative_log_likelihood / tokens)
    except OverflowError:
        return math.inf


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

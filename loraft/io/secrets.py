"""Tokens and passwords by their shapes, so that none gets into a file that leaves this machine."""

from __future__ import annotations

import re

SHAPES = {
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{20,}",
    "a key of OpenAI or Anthropic": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a token of GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of Slack": r"\bxox[abpr]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s:@]+@",
}


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, by the first shape that it has; None where it holds none."""
    return next((kind for kind, shape in SHAPES.items() if re.search(shape, text)), None)

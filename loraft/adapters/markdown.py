"""Text of others inside Markdown: names, labels and paths as they are, whatever they hold.

A card is shown as a page, and its header is read by programs: a label with a line end, a backtick or a tag must neither
break the one nor become a part of the other.
"""

from __future__ import annotations

import json
import re

UNSEEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
"""Line ends of every kind, and what else has no place in a line."""
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~$!])")


def code(text: str) -> str:
    """A code span that shows `text` in one line; `|` in a table needs `cell` besides.

    Source: CommonMark 0.31, 6.1: a span ends at a run of as many backticks as it began with.
    """
    text = _flat(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    edge = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def prose(text: str) -> str:
    """A part of a sentence that shows `text` as it is."""
    return SPECIAL.sub(r"\\\1", _flat(text))


def cell(text: str) -> str:
    """Markdown as a cell of a table, where `|` would begin the next one, in code too."""
    return text.replace("|", "\\|")


def quoted(text: str) -> str:
    """A string of YAML, of JSON and of Python alike."""
    return json.dumps(_flat(text), ensure_ascii=False)


def _flat(text: str) -> str:
    """One line that can be written as UTF-8: a file's name may hold bytes that are no text."""
    return UNSEEN.sub(" ", text).encode("utf-8", errors="replace").decode("utf-8").strip()

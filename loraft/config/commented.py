"""A config as text, each of its keys below a comment that says why it stands there."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from loraft.config.config_file import inline

WIDTH = 100
NO_COMMENT = re.compile("[^\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What does not stand in a comment as it is."""
Said = tuple[str, object, str]
"""A dotted key, its value, and why it stands there; where nothing is to be said of it, empty."""


def commented(said: Iterable[Said]) -> Iterator[str]:
    """The lines of a config: its keys in their order, an empty line before each section."""
    section = ""
    for key, value, why in said:
        name, _, inner = key.rpartition(".")
        if name != section:
            yield from ["", f"{name}:"] if name else [""]
            section = name
        indent = "  " if name else ""
        yield from comment(why, indent)
        yield f"{indent}{inner}: {inline(value)}"


def comment(text: str, indent: str = "", hang: str = "") -> Iterator[str]:
    """A text as lines of a comment; all but the first begin with `hang`."""
    plain = NO_COMMENT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # which could end the comment's line
    lines = textwrap.wrap(
        plain, WIDTH - len(indent) - 2, subsequent_indent=hang, break_on_hyphens=False, break_long_words=False
    )
    yield from (f"{indent}# {line}" for line in lines)

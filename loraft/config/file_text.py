"""The bytes of a config file as characters."""

from __future__ import annotations

import re
from pathlib import Path

from loraft.errors import ConfigError

MOST_BYTES = 64 * 1024
NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not take as a character of a file, and a byte order mark in the middle of one."""


def read_text(path: Path | str) -> str:
    """The characters of a file that is small enough and holds text only.

    Raises:
        ConfigError: With the line, where it is a matter of one.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=name, remedy=f"loraft init {name} writes one.") from None
    except IsADirectoryError:
        raise ConfigError("is a folder; a config is a YAML file", where=name) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot be read: {reason}", where=name) from None
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"is larger than {MOST_BYTES // 1024} KiB, and so no config", where=name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"is not valid UTF-8 (byte 0x{raw[error.start]:02x})"
        raise ConfigError(message, where=f"{name}:{line}", remedy="Save it as UTF-8.") from None
    return checked_text(text, name)


def checked_text(text: str, name: str) -> str:
    """`text` itself, if every character of it may stand in a YAML file.

    Raises:
        ConfigError: With the place of the first one that may not.
    """
    unreadable = NO_TEXT.search(text)
    if unreadable is None:
        return text
    before = text[: unreadable.start()]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    message = f"holds the character U+{ord(unreadable[0]):04X}, which is no text"
    raise ConfigError(message, where=f"{name}:{line}:{column}")

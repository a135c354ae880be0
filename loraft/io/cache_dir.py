"""Where loraft keeps what it can make again: converted models, rows as tokens, which files were verified."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """`LORAFT_CACHE`, or the platform's cache folder."""
    chosen = os.environ.get("LORAFT_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("loraft")

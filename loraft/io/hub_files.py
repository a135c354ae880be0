"""Files of the Hub, as whole as they were there: asked for with patience, and compared with what the Hub calls them.

The cache of the Hub's library has each file under its checksum: the sha256 of a large one, and of others what git has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from loraft.errors import AdapterError, ModelError
from loraft.io.checksums import REMADE, fault
from loraft.io.paths import without_bars
from loraft.io.patience import patiently
from loraft.io.resources import disk_errors

NETWORK_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
"""What the Hub's library raises where it is not answered, whichever library it asks by."""
GIT = b"blob %d\0"
"""What git puts before a content of so many bytes, to name it."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_*", "*.json", "*.jinja", "*.model", "*.spm", "merges.txt", "vocab.txt")
"""Config, weights, tokenizer and record; pickled weights come along to be named in the refusal, and are not opened."""
BELOW_THE_ROOT = "*/*"
ANOTHER_HOME = "Free some space, or set HF_HOME to a folder on another disk."


def whole_files(fetch: Callable[[], str], patterns: Sequence[str]) -> Path:
    """The folder that `fetch` gives, of whose files those that `patterns` name are whole.

    Damaged ones are fetched again, which `remade` tells.

    Raises:
        ModelError: A file is damaged, and the Hub is not to be asked or gives another than it lists.
        DiskFullError: The disk filled up.
        Exception: What `fetch` raises.
    """
    with disk_errors(Path(constants.HF_HUB_CACHE), remedy=ANOTHER_HOME):
        folder = Path(patiently(fetch))
        damaged = _damaged(folder, patterns)
        if not damaged:
            return folder
        if constants.HF_HUB_OFFLINE:
            remedy = "Let it be fetched again: unset HF_HUB_OFFLINE."
            raise ModelError("is damaged: it is not what the Hub gave", where=damaged[0], remedy=remedy)
        for file in damaged:
            _blob(file).unlink(missing_ok=True)
            file.unlink()
        folder = Path(patiently(fetch))
    if left := _damaged(folder, patterns):
        remedy = "Try again later; where HF_ENDPOINT or a proxy names another server, it may be that one's."
        raise ModelError("is not what the Hub lists, though it was fetched twice", where=left[0], remedy=remedy)
    names = ", ".join(file.name for file in damaged)
    REMADE.append(f"the Hub's files in {folder.parents[1].name} were damaged ({names}), and were fetched again")
    return folder


def adapter_from_hub(name: str) -> Path | None:
    """The local folder of the adapter `name` on the Hub; None where there is none of that name, or no adapter in it.

    Raises:
        AdapterError: The Hub has it and it cannot be fetched.
    """

    def fetched(*patterns: str) -> Path:
        asked = partial(snapshot_download, name, allow_patterns=[*patterns], ignore_patterns=[BELOW_THE_ROOT])
        return whole_files(asked, patterns)

    nothing = (NETWORK_ERROR, HFValidationError, OSError)
    with without_bars():
        try:
            if not (fetched(ADAPTER_CONFIG) / ADAPTER_CONFIG).is_file():
                return None
        except nothing:
            return None
        try:
            return fetched(*ADAPTER_FILES)
        except nothing as error:
            raise AdapterError(f"the Hub's {name} cannot be fetched ({type(error).__name__})", where=name) from error


def _damaged(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that are others than their checksums say; one that is not kept under its checksum cannot be told."""
    found = sorted(folder.iterdir()) if folder.is_dir() else ()  # there is no folder where no file was fetched
    named = (file for file in found if any(fnmatch(file.name, pattern) for pattern in patterns))
    return [file for file in named if file.is_symlink() and not file.is_dir() and _is_damaged(_blob(file))]


def _blob(file: Path) -> Path:
    """Where the content of a file of a snapshot is kept."""
    return file.parent / file.readlink()


def _is_damaged(blob: Path) -> bool:
    if not blob.is_file():
        return True
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        seal: dict[str, int | str] = {"bytes": blob.stat().st_size, "sha256": blob.name}
        return fault(blob.parent, {blob.name: seal}) is not None
    return re.fullmatch(r"[0-9a-f]{40}", blob.name) is not None and blob.name not in _sha1s(blob.read_bytes())


def _sha1s(content: bytes) -> list[str]:
    """What git calls a content, and what servers do that stand in for the Hub."""
    return [hashlib.sha1(begun + content, usedforsecurity=False).hexdigest() for begun in (GIT % len(content), b"")]

"""A .zip file that holds a model's folder in transformers' format, unpacked as that folder.

It refuses to unpack anything else: no code, no pickled weights, and nothing that would lie outside the folder.
"""

from __future__ import annotations

import shutil
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from loraft.errors import ModelError
from loraft.io.disk_space import require_free_bytes

PARTS = ("*.json", "*.safetensors", "*.jinja", "*.model", "vocab.txt", "merges.txt")
"""What a model is made of: config, weights, tokenizer."""


def unpack(file: Path, folder: Path) -> None:
    """Write the model in `file` into `folder`.

    Raises:
        ModelError: The file is no .zip, or holds no model.
        ResourceError: The disk is too small for it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            # Folders in it hold what other programs make of the model, such as its pooling.
            members = {PurePosixPath(each.filename): each for each in archive.infolist() if not each.is_dir()}
            parts = {
                str(path): each
                for path, each in members.items()
                if len(path.parts) == 1 and any(fnmatch(str(path), pattern) for pattern in PARTS)
            }
            if "config.json" not in parts:
                raise ModelError("holds no config.json, so it holds no model", where=file.name)
            require_free_bytes(folder, sum(each.file_size for each in parts.values()), f"unpacking {file.name}")
            for name, each in parts.items():
                with archive.open(each) as packed, (folder / name).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ModelError(f"cannot be read as a .zip file: {error}", where=file.name) from error

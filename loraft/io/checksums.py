"""The sizes and sha256 of files, written down when they were whole; whether they still are so, in the cache too.

A file of weights takes as long to hash as to load, so a hash that agreed is remembered in the cache, for as long as the
file keeps its size, its time of change and its inode.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from functools import lru_cache
from glob import escape
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from loraft.errors import DiskFullError, InvalidInputError, ModelError
from loraft.io.atomic import atomic_dir, write_json, write_whole
from loraft.io.paths import cache_folder, made_cache_folder
from loraft.io.resources import ANOTHER_CACHE, disk_errors
from loraft.io.sealed import is_as_sealed, sealed

NOT_READ = (OSError, ValueError, KeyError, TypeError, AttributeError)
PUT_BACK = "Put it back as it was, or train or merge again."
VERIFIED = "verified-1"
"""The folder of remembered hashes in the cache."""
REMEMBERED_FROM = 10_000_000
"""Files of so many bytes are remembered; smaller ones are hashed anew in milliseconds."""
RECORD = "loraft.json"
"""What loraft writes beside weights; its `files` are the seals of all that decides an answer."""
MERGE_REPORT = "merge_report.json"
"""What a merge tells of itself; a folder that has it holds a merged model."""
NOT_SEALED = (RECORD, "README.md", MERGE_REPORT)
"""What tells of a model, and decides no answer."""
REMADE: list[str] = []
"""What was made or fetched anew, because it was damaged, since `remade` was last asked."""

Seals = Mapping[str, Mapping[str, int | str]]
"""Files by their names in a folder: `bytes` and `sha256` of each."""


def is_weights(name: str) -> bool:
    """Whether a file holds tensors, which are verified when they are read and not before."""
    return name.endswith(".safetensors")


def seal(folder: Path, leave_out: Container[str] = ()) -> dict[str, dict[str, int | str]]:
    """The size and sha256 of every file in a folder, but for those that are left out."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: seal_of(path) for name, path in sorted(files.items()) if name not in leave_out}


def seal_of(path: Path) -> dict[str, int | str]:
    """The size and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def fault(folder: Path, seals: Seals, wanted: Callable[[str], bool] = lambda _: True) -> tuple[str, str] | None:
    """The name of the first wanted file that is not as its seal says, and what is wrong with it; None where none is.

    Raises:
        OSError: A file cannot be read.
        ValueError, TypeError, KeyError, AttributeError: The seals are none.
    """
    for name in filter(wanted, seals):
        path, sealed = folder / name, seals[name]
        if not path.is_file():
            return name, "is missing"
        size = path.stat().st_size
        if size != sealed["bytes"]:
            return name, f"has {size:,} bytes instead of {sealed['bytes']:,}"
        if not _agrees(path, str(sealed["sha256"])):
            return name, "has other contents than were written"
    return None


def fault_by_manifest(folder: Path, manifest: Path) -> str | None:
    """What is wrong with a folder whose seals are the `files` of a manifest; None where each file is as it says."""
    try:
        held = json.loads(manifest.read_text(encoding="utf-8"))
        if not is_as_sealed(held):
            return f"{manifest.name} has other contents than were written"
        found = fault(folder, held["files"])
    except FileNotFoundError:
        return f"{manifest.name} is missing"
    except NOT_READ:
        return f"{manifest.name} cannot be read"
    return None if found is None else " ".join(found)


def write_record(folder: Path, record: Mapping[str, object]) -> None:
    """Write `loraft.json`, with the seals of the other files, when these are all there."""
    write_json(folder / RECORD, sealed({**record, "files": seal(folder, NOT_SEALED)}))


def is_config(name: str) -> bool:
    """Whether a file holds settings, which people change by hand: a change is told, and only a loss is refused."""
    return name.endswith("config.json")


def refuse_altered(folder: Path, wanted: Callable[[str], bool], error: type[InvalidInputError]) -> None:
    """Refuse a folder that loraft wrote, where one of the `wanted` files is lost, or altered and holds no settings.

    Raises:
        InvalidInputError: Of the class `error`; or what the files were cannot be read.
    """
    try:
        files = _recorded(folder)
        lost = ((name, what) for name in files if wanted(name) and (what := _loss(folder / name)) is not None)
        found = next(lost, None) or fault(folder, files, lambda name: wanted(name) and not is_config(name))
    except NOT_READ:
        raise error("what its files were cannot be read", where=folder / RECORD, remedy=PUT_BACK) from None
    if found is not None:
        name, what = found
        remedy = f"{PUT_BACK} To use it as it is, take {name} out of `files` in {folder / RECORD}."
        raise error(f"{what}: it is not what training or merging wrote", where=folder / name, remedy=remedy)


def altered_settings(folder: Path) -> tuple[str, ...]:
    """A sentence for each file of settings, and for `loraft.json`, where it is not as loraft wrote it."""
    try:
        files = _recorded(folder)
        altered = [name for name in files if is_config(name) and fault(folder, {name: files[name]}) is not None]
        if (folder / RECORD).is_file() and not is_as_sealed(json.loads((folder / RECORD).read_text(encoding="utf-8"))):
            altered.append(RECORD)
    except NOT_READ:
        return ()
    return tuple(f"{folder / name} was changed since loraft wrote it: what it says now is used" for name in altered)


def others_in(folder: Path) -> list[str]:
    """What lies in a folder besides what loraft wrote there, without hidden files; all of it where no record is."""
    try:
        known = {*_recorded(folder), *NOT_SEALED}
    except NOT_READ:
        known = {*NOT_SEALED}
    there = (path for path in folder.iterdir() if path.is_dir() or not path.name.startswith("."))
    return sorted(path.name for path in there if path.name not in known)


def _recorded(folder: Path) -> Seals:
    """What a folder's files were; nothing of another tool's."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("files", {})
    except FileNotFoundError:
        return {}
    if not isinstance(files, dict):
        raise TypeError("the seals are no object")
    return files


def _loss(path: Path) -> str | None:
    """How a file was lost; None where it is there. Settings that were changed by hand are JSON still."""
    if not path.is_file() or path.stat().st_size == 0:
        return "is missing or empty"
    if not is_config(path.name):
        return None
    try:
        return None if isinstance(json.loads(path.read_bytes()), dict) else "holds no settings"
    except (ValueError, RecursionError):
        return "is damaged"


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_facts(facts: Mapping[str, object]) -> str:
    """The sha256 of facts as JSON, whatever the order of their names."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def known_sha256_of(path: Path) -> str:
    """As `sha256_of`, computed once in this process while the file keeps its size and its time of change."""
    facts = path.stat()
    return _known_sha256_of(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=16)
def _known_sha256_of(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


def _agrees(path: Path, sha256: str) -> bool:
    facts = path.stat()
    if facts.st_size < REMEMBERED_FROM:
        return sha256_of(path) == sha256
    known = [facts.st_size, facts.st_mtime_ns, facts.st_ino, sha256]
    place = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
    note = cache_folder() / VERIFIED / f"{place}.json"
    with suppress(OSError, ValueError):
        if json.loads(note.read_text(encoding="utf-8")) == known:
            return True
    if sha256_of(path) != sha256:
        return False
    with suppress(OSError, DiskFullError):  # where nothing can be remembered it is hashed again
        made_cache_folder()
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(known))
    return True


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after `build` filled it if it was not there, or is not what `build` made.

    `build` is given a folder beside it, which gets the real name only when everything in it is on disk, with a manifest
    beside it. Processes that ask at the same time wait for the first; what a killed one left is removed under the lock.

    Raises:
        ModelError: The cache cannot be written.
        DiskFullError: The disk filled up meanwhile.
    """
    if folder.is_dir() and _fault_of(folder) is None:
        return folder
    try:
        with disk_errors(folder.parent, remedy=ANOTHER_CACHE):
            made_cache_folder()
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f"{folder.name}.lock"):
                if damage := _fault_of(folder) if folder.is_dir() else None:
                    REMADE.append(f"the cached model {folder.name} was damaged ({damage}), and was made anew")
                    shutil.rmtree(folder)
                if not folder.is_dir():
                    for left in folder.parent.glob(f".{escape(_manifest_of(folder).name)}.*"):  # by a kill
                        left.unlink(missing_ok=True)
                    with atomic_dir(folder, remedy=ANOTHER_CACHE) as built:
                        build(built)
                        # Before the folder gets its name: one that is there has its manifest.
                        write_whole(_manifest_of(folder), json.dumps(sealed({"files": seal(built)}), indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        message = f"the cache cannot be written: {getattr(error, 'strerror', None) or error}"
        raise ModelError(message, where=folder.parent, remedy=ANOTHER_CACHE) from error
    return folder


def _manifest_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.manifest.json")


def _fault_of(folder: Path) -> str | None:
    """What is wrong with a folder that was built; None where it is whole, or nobody wrote down what it was."""
    manifest = _manifest_of(folder)
    return fault_by_manifest(folder, manifest) if manifest.exists() else None


def remade() -> tuple[str, ...]:
    """What was made or fetched anew since this was last asked, a sentence each."""
    found = tuple(REMADE)
    REMADE.clear()
    return found

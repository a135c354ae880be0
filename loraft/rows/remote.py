"""Files of rows that lie elsewhere: each is fetched once into the cache, and again where it has changed there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from loraft.errors import LoraftError
from loraft.io.checksums import sha256_of_facts
from loraft.io.kept_files import kept_file
from loraft.io.paths import without_bars
from loraft.io.patience import is_fetched, patiently
from loraft.io.resources import ANOTHER_CACHE, disk_errors
from loraft.rows.row import source_error

ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]+):/+")
"""A path that was read from a command line has one of its slashes left."""
HTTP = ("http", "https")
VERSIONS = ("ETag", "Last-Modified", "Content-MD5", "Digest")
"""What a server may say of a file by which a change is noticed."""
SECONDS_OF_SILENCE = 60


def address_of(name: str) -> str | None:
    """The address that a path is; None where it is none."""
    if (found := ADDRESS.match(name)) is None:
        return None
    root = "/" * (found["scheme"] == "file")
    return f"{found['scheme']}://{root}{name[found.end() :]}"


def local_path(address: str) -> str | None:
    """The path that the address of a file on this machine names."""
    return address.removeprefix("file://") if address.startswith("file://") else None


def file_name(address: str) -> str:
    """The name of the file at an address."""
    is_http = address.partition(":")[0] in HTTP
    return PurePosixPath(urlsplit(address).path if is_http else address).name


@cache
def listed(address: str) -> tuple[tuple[str, ...], bool]:
    """The addresses of the files that an address names, and whether it is that of a folder or a pattern.

    Raises:
        DataError: What it names cannot be reached.
    """
    system, path = _file_system(address)
    if address.partition(":")[0] in HTTP:  # there ? is no pattern, and a folder has no list
        return (address,), False
    with _told_where_unreachable(address):
        if has_magic(path):
            matching = system.glob(path, detail=True).items()
            found = [
                each for each, about in matching if about["type"] == "file" and not file_name(each).startswith(".")
            ]
        elif system.isdir(path):
            inside = ((each, PurePosixPath(each).relative_to(PurePosixPath(path))) for each in system.find(path))
            found = [each for each, below in inside if not any(part.startswith(".") for part in below.parts)]
        else:
            return (address,), False
        return tuple(str(system.unstrip_protocol(each)) for each in sorted(found)), True


@cache
def fetched(address: str) -> Path:
    """The file at an address, on this machine: as it is there now, for as long as this process runs.

    Raises:
        DataError: It cannot be reached, or not be kept.
        DiskFullError: The disk filled up.
    """
    system, path = _file_system(address)
    with _told_where_unreachable(address), without_bars():
        version = patiently(lambda: _version(system, path))
    key = sha256_of_facts({"address": address, "version": version})[:16]

    def write(file: Path) -> None:
        with _told_where_unreachable(address), disk_errors(file, remedy=ANOTHER_CACHE), without_bars():
            patiently(lambda: system.get_file(path, str(file)))

    try:
        return kept_file(
            key, re.sub(r"[^\w.-]", "_", file_name(address))[-100:], write, anew=version is None and not is_fetched()
        )
    except OSError as error:
        message = f"cannot be kept in the cache: {error.strerror}"
        raise source_error(message, address, ANOTHER_CACHE) from error


def _version(system: Any, path: str) -> str | None:
    """What tells a file from what it is after a change; None where nothing does."""
    about = system.info(path)
    if "http" not in system.protocol:
        return str(system.ukey(path))
    told = [about.get(name) for name in VERSIONS]
    return sha256_of_facts({"told": told, "size": about.get("size")}) if any(told) else None


def _file_system(address: str) -> tuple[Any, str]:
    """What reads files at such addresses, and what it calls this one.

    Raises:
        DataError: Nothing here does.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    scheme = address.partition(":")[0]
    try:
        return url_to_fs(address, **(_session() if scheme in HTTP else {}))  # type: ignore[no-any-return]
    except ImportError as error:
        package = str(known_implementations.get(scheme, {}).get("class", "")).partition(".")[0]
        what = str(error) if package in ("", "fsspec") else f"needs the package {package}, which is not installed"
        remedy = f"pip install {package}" if package not in ("", "fsspec") else None
        raise source_error(what, address, remedy) from None
    except ValueError:
        message = f"addresses that begin with {scheme}:// are not read"
        raise source_error(message, address, "Fetch the file first, and name it.") from None


def _session() -> dict[str, Any]:
    """Proxies as the environment says them, and no end to a long answer, but to silence."""
    import aiohttp

    patience = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS_OF_SILENCE, sock_read=SECONDS_OF_SILENCE)
    return {"client_kwargs": {"trust_env": True, "timeout": patience}}


@contextmanager
def _told_where_unreachable(address: str) -> Iterator[None]:
    try:
        yield
    except LoraftError:
        raise
    except Exception as error:  # each library below has classes of its own, and they share no other
        cause = error.__cause__ or error
        status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, FileNotFoundError) or status == 404:
            raise source_error("there is no such file", address, "Check the address.") from None
        why = (str(cause).splitlines() or [""])[0] or type(cause).__name__
        remedy = "Check the address, and that this machine reaches it; or fetch the file, and name it."
        raise source_error(f"cannot be reached: {why}", address, remedy) from None

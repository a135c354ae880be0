"""What a process may no longer do before it opens somebody else's file: for each thing a door, and each is shut.

Three walls stand behind one another: torch opens tensors alone (`weights_only`), Python refuses the doors below
whoever asks, and the system keeps memory, time, files and the network within bounds.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

SHUT = (
    "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "pty.",
    "ctypes.", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.kill", "os.putenv", "shutil.", "tempfile.", "urllib.", "ftplib.", "smtplib.", "webbrowser.",
)  # fmt: skip
"""How the events of Python's audit begin that are refused."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NEW_NETWORK, NEW_USER = 0x4000_0000, 0x1000_0000
"""Linux's flags for a network without interfaces, and for the rights to ask for one."""
BASE_BYTES = 1 << 30
"""What opening and writing need beside the numbers themselves."""
BASE_SECONDS = 60
BYTES_A_SECOND = 20_000_000
"""Bytes that are read, checked and written a second, on a slow machine."""


def leave_network() -> None:
    """Leave this process no network but its own empty one, where the system is Linux and lets it.

    It is to be called while the process has one thread.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if libc.unshare(NEW_NETWORK) != 0:  # only root may ask for that alone
            libc.unshare(NEW_USER | NEW_NETWORK)


def confine(out: Path, size: int) -> None:
    """Keep this process to reading files and writing `out`, with what a file of `size` bytes takes of memory and time.

    It cannot be undone. Twice the size of the file is allowed: where it cannot be mapped it is read, and a tensor that
    is not in order is put in order.
    """
    statm = Path("/proc/self/statm")
    held = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    most = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: BASE_SECONDS + size // BYTES_A_SECOND}
    if held:  # elsewhere nothing tells what the libraries hold already
        most[resource.RLIMIT_AS] = held + 2 * size + BASE_BYTES
    for kind, bound in most.items():
        _, hard = resource.getrlimit(kind)
        least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (least, least))
    allowed = os.fspath(out)

    def refuse(event: str, given: tuple[object, ...]) -> None:
        if event.startswith(SHUT):
            raise PermissionError(f"{event} is not for a process that opens pickles")
        if event == "open" and isinstance(given[2], int) and given[2] & WRITES and given[0] != allowed:
            raise PermissionError(f"{given[0]} is not for a process that opens pickles to write")

    sys.addaudithook(refuse)

"""Two network namespaces that stand for two machines, joined by a cable that can be pulled out; made as root alone."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shutil import which

NEW_NETWORK = 0x40000000
"""CLONE_NEWNET."""
ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Hosts:
    """The names of the two, and what joins them."""

    def __init__(self) -> None:
        self.names = [f"loraft{os.getpid()}x{number}" for number in range(2)]
        self.cables = [f"lr{os.getpid()}x{number}" for number in range(2)]

    def enter(self, number: int) -> None:
        """Have this process be on one of them."""
        with open(f"/run/netns/{self.names[number]}") as space:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(space.fileno(), NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")

    def cut(self) -> None:
        """Pull the cable out; nothing tells either of them."""
        self._inside(0, "link", "set", self.cables[0], "down")

    def mend(self) -> None:
        """Put it back."""
        self._inside(0, "link", "set", self.cables[0], "up")

    def _inside(self, number: int, *words: str) -> None:
        _ip("-n", self.names[number], *words)

    def make(self) -> None:
        """Make them."""
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
        for number, cable in enumerate(self.cables):
            _ip("link", "set", cable, "netns", self.names[number])
            self._inside(number, "addr", "add", f"{ADDRESSES[number]}/24", "dev", cable)
            self._inside(number, "link", "set", cable, "up")
            self._inside(number, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Remove what there is of them."""
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two machines meanwhile."""
    hosts = Hosts()
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()


def why_there_are_none() -> str | None:
    """Why no network can be made here; None where it can."""
    if os.geteuid() or which("ip") is None:
        return "needs root and the program ip, to make two networks"
    try:
        with two_hosts():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"two networks cannot be made here: {error}"

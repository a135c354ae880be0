"""Where several machines meet: asked before torch is, which waits for long and hears no signal meanwhile."""

from __future__ import annotations

import socket
import time

from loraft.errors import ConfigError, LostRankError

WAITED = 900
"""Seconds that a machine waits for the first one, as torch does for the others."""


def meet_first_machine(host: str, port: int, *, first: bool) -> None:
    """Wait until the first machine listens at an address; where this is the `first`, see that it can.

    Raises:
        ConfigError: There is no such address, or the port is taken.
        LostRankError: The first machine did not come.
    """
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        message = f"no machine is found by the name {host}: {error.strerror}"
        remedy = "name the address of machine 0, as `ip addr` tells it there"
        raise ConfigError(message, parameter="main_process_ip", remedy=remedy) from None
    if first:
        _require_free(port)
        return
    until = time.monotonic() + WAITED
    while not _answers(host, port):
        if time.monotonic() > until:
            message = f"machine 0 has not answered at {host}, port {port}, for {WAITED} seconds"
            raise LostRankError(message, parameter="main_process_ip", remedy="start it, and then this one again")
        time.sleep(1)


def _require_free(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just let go is free
        try:
            tried.bind(("", port))
        except OSError as error:
            message = f"port {port} cannot be taken: {error.strerror}"
            remedy = "name another one, on all machines"
            raise ConfigError(message, parameter="main_process_port", remedy=remedy) from None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True

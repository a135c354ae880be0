"""Machines find the first one, or say why not, before torch waits."""

from __future__ import annotations

import socket

import pytest

from loraft.distributed import first_machine
from loraft.distributed.first_machine import meet_first_machine
from loraft.errors import ConfigError, LostRankError


@pytest.fixture
def taken() -> socket.socket:
    """A port that somebody listens at."""
    return socket.create_server(("127.0.0.1", 0))


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no machine is found by the name nosuch") as refused:
        meet_first_machine("nosuch.invalid", 29500, first=False)
    assert refused.value.problems[0].parameter == "main_process_ip"


def test_a_port_that_is_taken_is_refused_on_the_first_machine(taken: socket.socket) -> None:
    with taken, pytest.raises(ConfigError, match="cannot be taken") as refused:
        meet_first_machine("127.0.0.1", taken.getsockname()[1], first=True)
    assert refused.value.problems[0].parameter == "main_process_port"


def test_the_others_meet_the_first_one_where_it_listens(taken: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = taken.getsockname()[1]
    with taken:
        meet_first_machine("127.0.0.1", port, first=False)
    monkeypatch.setattr(first_machine, "WAITED", -1)
    with pytest.raises(LostRankError, match="machine 0 has not answered"):
        meet_first_machine("127.0.0.1", port, first=False)
    meet_first_machine("127.0.0.1", port, first=True)

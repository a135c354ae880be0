"""`loraft doctor`."""

from __future__ import annotations

import json

import pytest

from loraft.inspection import environment as machine
from tests.cli.conftest import Loraft


@pytest.fixture
def _examined(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "versions": {"torch": "2.13.0"},
        "devices": {"cpu": {"name": "a CPU", "cores": 2, "memory_bytes": 8_000_000_000}},
        "hub": {"offline": True},
    }
    monkeypatch.setattr(machine, "examine", lambda: facts)


@pytest.mark.usefixtures("_examined")
def test_doctor_draws_the_facts(loraft: Loraft) -> None:
    rows = [line.strip() for line in loraft("doctor").stdout.splitlines()]
    assert "cpu      name a CPU · cores 2 · memory 8.0 GB" in rows
    assert "offline  yes" in rows


@pytest.mark.usefixtures("_examined")
def test_doctor_json(loraft: Loraft) -> None:
    document = json.loads(loraft("doctor", "--json").stdout)
    assert document["versions"] == {"torch": "2.13.0"}
    assert document["devices"]["cpu"]["memory_bytes"] == 8_000_000_000

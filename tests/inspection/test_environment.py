"""What this machine can do, looked up and tried."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from loraft.inspection.environment import examine
from loraft.version import COMPUTES_WITH

Parts = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def facts() -> Parts:
    return examine()


def test_parts_come_in_order(facts: Parts) -> None:
    assert list(facts) == ["versions", "devices", "bitsandbytes", "disk", "hub"]


def test_versions_are_those_installed(facts: Parts) -> None:
    import torch

    release = torch.__version__.partition("+")[0]  # what it was built for follows, in some packages
    assert facts["versions"]["torch"].partition("+")[0] == release
    assert all(facts["versions"][library] != "not installed" for library in COMPUTES_WITH)


def test_the_cpu_has_cores_and_memory(facts: Parts) -> None:
    cpu = facts["devices"]["cpu"]
    assert isinstance(cpu, dict)
    assert int(cpu["cores"]) >= 1
    assert 0 < int(cpu["available_bytes"]) <= int(cpu["memory_bytes"])


def test_the_cpu_has_the_name_and_the_memory_that_a_run_tells_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraft.config.sections import ModelSection
    from loraft.models import device

    monkeypatch.setattr(device, "main_memory", lambda: (2_000, 1_000))
    cpu = examine()["devices"]["cpu"]
    assert (cpu["memory_bytes"], cpu["available_bytes"]) == (2_000, 1_000)
    stated = device.StatedDevice(device="cpu")
    assert cpu["name"] == device.select_device(ModelSection(name_or_path="any"), stated).device_name


def test_bitsandbytes_is_tried_and_not_presumed(facts: Parts) -> None:
    assert facts["bitsandbytes"]["nf4_on_cpu"] == "works"
    assert facts["bitsandbytes"]["int8_on_cpu"] == "works"
    assert facts["bitsandbytes"]["8bit_optimizer_on_cpu"] == "works"
    assert facts["bitsandbytes"]["lion_8bit_optimizer_on_cpu"] == "works"
    assert facts["bitsandbytes"]["ademamix_8bit_optimizer_on_cpu"] == "works"
    assert facts["bitsandbytes"]["paged_optimizer_on_cpu"] == "falls back to unpaged state"


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    right = Linear4bit.forward
    monkeypatch.setattr(Linear4bit, "forward", lambda self, rows: right(self, rows) * 1.1)
    assert examine()["bitsandbytes"]["nf4_on_cpu"] == "fails: its outputs are not those of its dequantized weight"


def test_a_wrong_product_in_int8_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraft.kernels import int8_linear

    right = int8_linear.Int8Linear.forward
    monkeypatch.setattr(int8_linear.Int8Linear, "forward", lambda self, rows: right(self, rows) * 1.1)
    assert examine()["bitsandbytes"]["int8_on_cpu"] == "fails: its outputs are not those of its dequantized weight"


def test_a_library_that_cannot_be_imported_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("bitsandbytes"):
            raise RuntimeError("CUDA setup failed\nand much more")
        return original(name, *rest)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.startswith("bitsandbytes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert examine()["bitsandbytes"]["import"] == "fails: RuntimeError: CUDA setup failed"


def test_disk_and_cache_are_measured(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache.mkdir()
    (cache / "weights").write_bytes(bytes(1000))
    (cache / "link").symlink_to(cache / "weights")
    measured = examine()["disk"]["cache"]
    assert isinstance(measured, dict)
    assert measured["folder"] == str(cache)
    assert 1000 <= int(measured["used_bytes"]) < 2000
    assert int(measured["free_bytes"]) > 0


def test_the_hub_is_told_by_its_settings(facts: Parts) -> None:
    assert facts["hub"]["offline"] is True, "tests run offline"
    assert facts["hub"]["token_found"] is False

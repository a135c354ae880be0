"""Device and dtype are decided once, and said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loraft.config.sections import ModelSection
from loraft.errors import ModelError
from loraft.models import device as placement
from loraft.models.device import select_device


def section(dtype: str = "auto") -> ModelSection:
    return ModelSection.model_validate({"name_or_path": "x", "dtype": dtype})


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def fake_gpu(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60, 80))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"sve_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
    ],
)
def test_auto_on_a_cpu_is_bfloat16_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    placed = select_device(section())
    assert (placed.device, placed.dtype) == ("cpu", dtype)
    assert placed.dtype_name in placed.notes[0]
    assert 0 < placed.available_bytes <= placed.total_bytes


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_cuda(monkeypatch: pytest.MonkeyPatch, bf16: bool, dtype: torch.dtype) -> None:
    fake_gpu(monkeypatch, bf16=bf16)
    placed = select_device(section())
    assert (placed.device, placed.dtype, placed.device_name) == ("cuda", dtype, "Test GPU")
    assert (placed.total_bytes, placed.available_bytes) == (80, 60)


@pytest.mark.usefixtures("no_gpu")
def test_a_named_dtype_is_taken() -> None:
    assert select_device(section("float32")).dtype == torch.float32
    assert select_device(section("bfloat16")).dtype == torch.bfloat16


def test_float16_is_for_cuda_alone(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    with pytest.raises(ModelError, match="float16 does not train on a CPU"):
        select_device(section("float16"))
    fake_gpu(monkeypatch, bf16=True)
    assert select_device(section("float16")).dtype == torch.float16


@pytest.mark.usefixtures("no_gpu")
def test_a_container_may_have_less_memory_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "CGROUPS", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000, available=900))
    assert select_device(section()).available_bytes == 900
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert select_device(section()).total_bytes == 1000
    (tmp_path / "memory.max").write_text("400\n")
    placed = select_device(section())
    assert (placed.total_bytes, placed.available_bytes) == (400, 300)
    (tmp_path / "memory.stat").write_text("anon 20\nfile 80\nactive_file 10\ninactive_file 70\n")
    assert select_device(section()).available_bytes == 370, "what was read of files is given back"


@pytest.mark.parametrize(
    ("version", "groups", "most", "held", "of_files"),
    [
        ("v2", "0::/jobs/one/task\n", "memory.max", "memory.current", "inactive_file"),
        (
            "v1", "12:cpu,cpuacct:/\n9:memory:/jobs/one/task\n1:name=systemd:/\n0::/\n", "memory.limit_in_bytes",
            "memory.usage_in_bytes", "total_inactive_file",
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_gpu")
def test_a_job_may_have_less_memory_than_its_machine(
    version: str, groups: str, most: str, held: str, of_files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit is that of any group around the process, in either version of Linux's control groups."""
    root = tmp_path / "memory" if version == "v1" else tmp_path
    monkeypatch.setattr(placement, "CGROUPS", tmp_path)
    monkeypatch.setattr(placement, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000, available=900))
    (tmp_path / "own").write_text(groups)
    for folder, limit, used in (("jobs/one/task", 2**63 - 4096, 100), ("jobs/one", 400, 150), ("jobs", 600, 590)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / most).write_text(f"{limit}\n")
        (root / folder / held).write_text(f"{used}\n")
    (root / "jobs/memory.stat").write_text(f"{of_files} 300\n")
    placed = select_device(section())
    assert (placed.total_bytes, placed.available_bytes) == (400, 250)
    (root / "jobs/memory.stat").write_text(f"{of_files} 70\n")
    assert select_device(section()).available_bytes == 80


@pytest.mark.parametrize(("dtype", "said"), [("float32", True), ("bfloat16", False)])
def test_that_products_in_float32_do_without_tf32_is_said(
    monkeypatch: pytest.MonkeyPatch, dtype: str, said: bool
) -> None:
    fake_gpu(monkeypatch, bf16=True)
    (note,) = select_device(section(dtype)).notes
    assert ("without TF32" in note) == said
    assert torch.backends.cuda.matmul.allow_tf32 is False

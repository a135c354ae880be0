"""Where a model runs and in which dtype: decided once, said in one sentence, and never guessed again.

float16 is for CUDA alone. On a CPU it is refused: its gradients underflow without loss scaling, and bfloat16 takes
as little memory and needs none.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from loraft.config.sections import ModelSection
from loraft.errors import ModelError

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "avx10_2", "sve_bf16", "bf16")
"""The names, among torch's CPU capabilities, of instructions that multiply bfloat16."""

CGROUP = Path("/sys/fs/cgroup")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""torch's dtypes by the names that the config has for them."""


@dataclass(frozen=True)
class DeviceConfig:
    """The device and the dtype of a run.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: The dtype of frozen weights and of products; what is trained is float32 whatever this is.
        device_name: The device as its maker calls it.
        total_bytes: The memory of the device; on a CPU what this process may use at most.
        available_bytes: What of it was free when this was decided.
        notes: What was decided and why, for the user.
    """

    device: str
    dtype: torch.dtype
    device_name: str
    total_bytes: int
    available_bytes: int
    notes: tuple[str, ...]

    @property
    def dtype_name(self) -> str:
        """The dtype as the config writes it."""
        return str(self.dtype).removeprefix("torch.")


def select_device(model: ModelSection) -> DeviceConfig:
    """Decide device and dtype: the first GPU where CUDA has one, else the CPU.

    Raises:
        ModelError: The dtype that is asked for does not train on this device.
    """
    return _on_cuda(model.dtype) if torch.cuda.is_available() else _on_cpu(model.dtype)


def _on_cuda(asked: str) -> DeviceConfig:
    name = torch.cuda.get_device_name()
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = asked if asked != "auto" else "bfloat16" if native else "float16"
    if asked != "auto":
        reason = "as asked for"
    elif native:
        reason = "which this GPU multiplies natively"
    else:
        reason = "since this GPU has no bfloat16 products"
    free, total = torch.cuda.mem_get_info()
    return DeviceConfig("cuda", DTYPES[chosen], name, total, free, (f"device cuda ({name}), dtype {chosen}, {reason}",))


def _on_cpu(asked: str) -> DeviceConfig:
    if asked == "float16":
        raise ModelError(
            "float16 does not train on a CPU: its gradients underflow without loss scaling",
            key="model.dtype",
            remedy="Use bfloat16, which takes as little memory, or auto.",
        )
    capabilities = torch.cpu.get_capabilities()
    native = next((name for name in NATIVE_BF16 if capabilities.get(name)), None)
    chosen = asked if asked != "auto" else "bfloat16" if native else "float32"
    if asked != "auto":
        reason = "as asked for"
    elif native:
        reason = f"which this CPU multiplies natively ({native})"
    else:
        reason = "since this CPU has no bfloat16 products"
    name = str(capabilities.get("cpu_name") or platform.processor() or platform.machine())
    total, available = _memory()
    return DeviceConfig(
        "cpu", DTYPES[chosen], name, total, available, (f"device cpu ({name}), dtype {chosen}, {reason}",)
    )


def _memory() -> tuple[int, int]:
    """Total and available bytes of this process: the machine's, or its container's where that has less."""
    machine = psutil.virtual_memory()
    limit, used = _container_bytes("memory.max"), _container_bytes("memory.current")
    if limit is None or used is None or limit >= machine.total:
        return machine.total, machine.available
    return limit, min(machine.available, max(limit - used, 0))


def _container_bytes(file: str) -> int | None:
    try:
        return int((CGROUP / file).read_text())
    except (OSError, ValueError):  # no cgroup v2 here, or the limit is the word "max"
        return None

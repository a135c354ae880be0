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

NO_FLOAT16 = "float16 does not train on a CPU: its gradients underflow without loss scaling"
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
    if torch.cuda.is_available():
        device, unit, otherwise, name = "cuda", "GPU", "float16", torch.cuda.get_device_name()
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        instructions = ""
        available, total = torch.cuda.mem_get_info()
    else:
        if model.dtype == "float16":
            raise ModelError(
                NO_FLOAT16, key="model.dtype", remedy="Use bfloat16, which takes as little memory, or auto."
            )
        capabilities = torch.cpu.get_capabilities()
        name = str(capabilities.get("cpu_name") or platform.processor() or platform.machine())
        device, unit, otherwise = "cpu", "CPU", "float32"
        native = next((one for one in NATIVE_BF16 if capabilities.get(one)), None)
        instructions = f" ({native})"
        total, available = _memory()
    chosen: str = model.dtype
    if chosen != "auto":
        reason = "as asked for"
    elif native:
        chosen, reason = "bfloat16", f"which this {unit} multiplies natively{instructions}"
    else:
        chosen, reason = otherwise, f"since this {unit} has no bfloat16 products"
    note = f"device {device} ({name}), dtype {chosen}, {reason}"
    return DeviceConfig(device, DTYPES[chosen], name, total, available, (note,))


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

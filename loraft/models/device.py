"""Where a model runs and in which dtype: decided once, said in one sentence, and never guessed again.

float16 is for CUDA alone. On a CPU it is refused: its gradients underflow without loss scaling, and bfloat16 takes
as little memory and needs none.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from loraft.config.gpus import GPUS, Gpu, gpu_called, gpu_named
from loraft.config.sections import ModelSection
from loraft.errors import ModelError

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "avx10_2", "sve_bf16", "bf16")
"""The names, among torch's CPU capabilities, of instructions that multiply bfloat16."""

CUDA_TAKES = 600 * 10**6
"""What CUDA and its libraries take of a GPU's memory for themselves, about."""
NO_FLOAT16 = "float16 does not train on a CPU: its gradients underflow without loss scaling"
EXACT = "its products are exact and slow, without TF32: bfloat16 is several times as fast"
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the folder of the memory's groups, of v2 and of v1: their files of the limit and of what is used, and the line in
memory.stat of what was read of files."""
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
        stated: It is planned for only, and need not be in this machine.
        gpu: What its maker states of it, where that is known.
    """

    device: str
    dtype: torch.dtype
    device_name: str
    total_bytes: int
    available_bytes: int
    notes: tuple[str, ...]
    stated: bool = False
    gpu: Gpu | None = None

    @property
    def dtype_name(self) -> str:
        """The dtype as the config writes it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype in which products of float32 weights are computed; None where that is float32 too."""
        return None if self.dtype == torch.float32 else self.dtype


@dataclass(frozen=True)
class StatedDevice:
    """A device that a run is planned for, whether this machine has it or not.

    Attributes:
        memory_bytes: The memory of a GPU; None is that of the GPU that is named, or of this machine's.
        gpu_name: What the GPU is called; None where nothing but its memory matters.
    """

    device: Literal["cpu", "cuda"]
    memory_bytes: int | None = None
    gpu_name: str | None = None


def _stated_gpu(model: ModelSection, stated: StatedDevice) -> DeviceConfig:
    """A CUDA GPU of so much memory, which multiplies bfloat16 natively unless it is one that is known not to.

    Raises:
        ModelError: Nothing is known of a GPU of that name.
    """
    name, gpu, memory = "a GPU", None, stated.memory_bytes
    if stated.gpu_name is not None:
        known = gpu_named(stated.gpu_name)
        if known is None:
            remedy = f"Known are {', '.join(GPUS)}; of another one say how much memory it has, by `gpu_memory`."
            raise ModelError(f"no rates are known of {stated.gpu_name!r}", parameter="gpu_name", remedy=remedy)
        name, gpu = known, GPUS[known]
        memory = gpu.gigabytes * 10**9 if memory is None else memory
    assert memory is not None, "else it is this machine's"
    native = "bfloat16" if gpu is None or gpu.bfloat16 else "float16"
    dtype = native if model.dtype == "auto" else model.dtype
    name = f"{name} of {memory / 1e9:.1f} GB"
    free = max(memory - CUDA_TAKES, 0)
    note = f"planned for {name} in dtype {dtype}, of which {free / 1e9:.1f} GB are left beside CUDA itself"
    return DeviceConfig("cuda", DTYPES[dtype], name, memory, free, (note,), stated=True, gpu=gpu)


def select_device(model: ModelSection, stated: StatedDevice | None = None) -> DeviceConfig:
    """Decide device and dtype: what is stated, else the first GPU where CUDA has one, else the CPU.

    Raises:
        ModelError: The dtype that is asked for does not train on this device, or there is no such device.
    """
    if stated is not None and (stated.memory_bytes is not None or stated.gpu_name is not None):
        return _stated_gpu(model, stated)
    device = stated.device if stated is not None else None
    if device == "cuda" and not torch.cuda.is_available():
        remedy = "Say how much memory it is to be planned for."
        raise ModelError("this machine has no CUDA GPU", parameter="gpu_memory", remedy=remedy)
    if torch.cuda.is_available() and device != "cpu":
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
        name = processor_name()
        device, unit, otherwise = "cpu", "CPU", "float32"
        native = next((one for one in NATIVE_BF16 if capabilities.get(one)), None)
        instructions = f" ({native})"
        total, available = main_memory()
    chosen: str = model.dtype
    if chosen != "auto":
        reason = "as asked for"
    elif native:
        chosen, reason = "bfloat16", f"which this {unit} multiplies natively{instructions}"
    else:
        chosen, reason = otherwise, f"since this {unit} has no bfloat16 products"
    exact = f"; {EXACT}" if device == "cuda" and chosen == "float32" else ""
    note = f"device {device} ({name}), dtype {chosen}, {reason}{exact}"
    rates = gpu_called(name) if device == "cuda" else None
    return DeviceConfig(device, DTYPES[chosen], name, total, available, (note,), gpu=rates)


def own_device(placement: DeviceConfig) -> str:
    """The device of this process by its number: threads take `cuda` for the first GPU, whatever it has chosen."""
    return f"cuda:{torch.cuda.current_device()}" if placement.device == "cuda" else placement.device


def processor_name() -> str:
    """What the processor calls itself, or its architecture where it does not."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def main_memory() -> tuple[int, int]:
    """Total and available bytes of this process: the machine's, or those of a control group of it that has less.

    Containers and jobs of a cluster are such. What they hold of files that were read counts as used, and is given back
    where memory is asked for.
    """
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for group, (most, held, of_files) in _control_groups():
        limit, used = _number_in(group / most), _number_in(group / held)
        if limit is not None and used is not None and limit < machine.total:
            given_back = _number_in(group / "memory.stat", rf"^{of_files} (\d+)$") or 0
            total, available = min(total, limit), min(available, max(limit - used + given_back, 0))
    return total, available


def _control_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the groups that this process is in, the innermost first, and what their files are called.

    A container may see itself as the root while the path of its group is the host's.
    """
    own = _text_of(OWN_CGROUPS)
    for name, files in MEMORY_FILES.items():
        root, named = CGROUPS / name, re.search(rf"^\d+:{name}:/(.*)$", own, re.MULTILINE)
        folder = root / (named[1] if named else "")
        yield from ((each, files) for each in (folder, *folder.parents) if each.is_relative_to(root))


def _number_in(file: Path, line: str = r"(\d+)\s*") -> int | None:
    """The number in a file; None where there is no such file or line, or the number is the word "max"."""
    found = re.search(line, _text_of(file), re.MULTILINE)
    return None if found is None else int(found[1])


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""

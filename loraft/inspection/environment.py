"""What this machine can do for loraft: facts, each looked up or tried, none presumed from a version number.

What of bitsandbytes works is tried on a small layer and compared with plain arithmetic. A library that cannot even be
imported is a fact like any other, so nothing here fails.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loraft.config.sections import ModelSection
from loraft.errors import first_line
from loraft.io.resources import free_bytes, usable_cores
from loraft.version import COMPUTES_WITH

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Facts = dict[str, str | int | bool]


def examine() -> dict[str, dict[str, str | int | bool | Facts]]:
    """Every fact, part by part; what ends in `_bytes` counts bytes."""
    parts = {"versions": _versions, "devices": _devices, "bitsandbytes": _bitsandbytes, "disk": _disk, "hub": _hub}
    return {part: dict(facts()) for part, facts in parts.items()}


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for library in COMPUTES_WITH:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            yield library, "not installed"


def _devices() -> Iterator[tuple[str, str | Facts]]:
    try:
        import torch

        from loraft.models.device import select_device
    except (ImportError, OSError) as error:
        yield "torch", _failure(error)
        return
    chosen = select_device(ModelSection(name_or_path="any"))
    yield "cpu", _cpu()
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index}", _gpu(index)
    yield "auto_dtype", " ".join(chosen.notes)


def _cpu() -> Facts:
    import torch

    from loraft.models.device import NATIVE_BF16, main_memory, processor_name

    total, available = main_memory()
    return {
        "name": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": total,
        "available_bytes": available,
        "native_bfloat16": any(torch.cpu.get_capabilities().get(name) for name in NATIVE_BF16),
    }


def _gpu(index: int) -> Facts:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": total_bytes,
        "available_bytes": free_bytes,
        "native_bfloat16": properties.major >= 8,  # Ampere was the first with bfloat16 products
    }


def _bitsandbytes() -> Iterator[tuple[str, str]]:
    try:
        import torch
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW32bit
        from bitsandbytes.optim.ademamix import AdEMAMix8bit
        from bitsandbytes.optim.lion import Lion8bit
    except Exception as error:  # its import loads native code, which fails in many ways; each is the answer
        yield "import", _failure(error)
        return
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        yield f"nf4_on_{device}", _tried(partial(_try_nf4, device))
        yield f"int8_on_{device}", _tried(partial(_try_int8, device))
        optimizers = {"8bit": AdamW8bit, "paged": PagedAdamW32bit, "lion_8bit": Lion8bit, "ademamix_8bit": AdEMAMix8bit}
        for name, kind in optimizers.items():
            yield f"{name}_optimizer_on_{device}", _tried(partial(_try_step, kind, device))


def _tried(trial: Callable[[], str]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trial()
    except Exception as error:  # whatever a native library raises is the answer to the question
        return _failure(error)


def _failure(error: Exception) -> str:
    return f"fails: {type(error).__name__}: {first_line(error)}"


def _try_nf4(device: str) -> str:
    """A double-quantized NF4 layer, as QLoRA computes it."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    options = {"bias": False, "compute_dtype": torch.float32, "quant_type": "nf4"}
    layer = Linear4bit(128, 64, **options).to(device)  # type: ignore[no-untyped-call]
    assert isinstance(layer.weight, Params4bit)
    return _compared(layer, dequantize_4bit(layer.weight.data, layer.weight.quant_state).float())


def _try_int8(device: str) -> str:
    """A layer in int8, whose products loraft computes itself."""
    import torch

    from loraft.kernels.int8_linear import Int8Linear
    from loraft.kernels.linear_weights import dequantized

    layer: Int8Linear = Int8Linear(128, 64, bias=False, has_fp16_weights=False).to(device)  # type: ignore[no-untyped-call]
    return _compared(layer, dequantized(layer.weight.data, layer.scales, torch.float32))


def _compared(layer: nn.Module, weight: Tensor) -> str:
    """Output and gradient of a quantized layer against those of its dequantized weight `[64, 128]`."""
    import torch

    rows = torch.linspace(-1, 1, 4 * 128, device=weight.device).reshape(4, 128).requires_grad_()
    output = layer(rows)
    output.sum().backward()
    if not torch.allclose(output, rows @ weight.T, rtol=1e-3, atol=1e-3):
        return "fails: its outputs are not those of its dequantized weight"
    if rows.grad is None or not torch.allclose(rows.grad, weight.sum(0).expand(4, 128), rtol=1e-3, atol=1e-3):
        return "fails: its gradients are not those of its dequantized weight"
    return "works"


def _try_step(kind: type[Optimizer], device: str) -> str:
    """One step on a parameter that is large enough for 8-bit and for paged state, downhill as it must be."""
    import torch

    weight = torch.nn.Parameter(torch.ones(512, 256, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = kind([weight], lr=0.1)  # type: ignore[call-arg]
    optimizer.step()
    if not (weight.isfinite().all() and (weight < 1).all()):
        return "fails: a step does not go downhill"
    paged = not getattr(optimizer, "is_paged", False) or hasattr(optimizer.state[weight]["state1"], "is_paged")
    return "works" if paged else "falls back to unpaged state"


def _disk() -> Iterator[tuple[str, Facts]]:
    from huggingface_hub import constants

    from loraft.dataset.token_cache import KEPT
    from loraft.io.paths import cache_folder

    cache = cache_folder()
    yield "current_folder", {"folder": str(Path.cwd()), "free_bytes": free_bytes(Path.cwd())}
    caches = {"cache": cache, "cache_of_rows": cache / KEPT, "hub_cache": Path(constants.HF_HUB_CACHE)}
    for name, folder in caches.items():
        yield name, {"folder": str(folder), "used_bytes": _size(folder), "free_bytes": free_bytes(folder)}


def _size(folder: Path) -> int:
    """Bytes of all files below `folder`, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def _hub() -> Iterator[tuple[str, str | bool]]:
    from huggingface_hub import constants, get_token

    yield "address", constants.ENDPOINT
    yield "offline", constants.HF_HUB_OFFLINE
    yield "token_found", get_token() is not None

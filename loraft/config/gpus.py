"""GPUs by name, with what their maker states of them: how fast they multiply, and their memory. Light: no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """What the maker of a GPU states of it.

    Attributes:
        teraflops: Dense products of 16-bit numbers that are summed in float32, 10¹² operations a second.
        gigabytes_a_second: What it reads from its memory, and writes to it.
        gigabytes: Its memory.
        called: What CUDA calls it, as a pattern.
        bfloat16: It multiplies bfloat16; else float16 alone.
    """

    teraflops: float
    gigabytes_a_second: float
    gigabytes: int
    called: str
    bfloat16: bool = True


GPUS: Mapping[str, Gpu] = {
    "H200": Gpu(989, 4800, 141, r"\bH200$"),
    "H100 SXM": Gpu(989, 3350, 80, r"\bH100 80GB HBM3$"),
    "H100 PCIe": Gpu(756, 2000, 80, r"\bH100 PCIe$"),
    "A100 80GB": Gpu(312, 2039, 80, r"\bA100(-SXM4-80GB| 80GB PCIe|-PCIE-80GB)$"),
    "A100 40GB": Gpu(312, 1555, 40, r"\bA100-(SXM4|PCIE)-40GB$"),
    "L40S": Gpu(362, 864, 48, r"\bL40S$"),
    "L4": Gpu(121, 300, 24, r"\bL4$"),
    "A10G": Gpu(70, 600, 24, r"\bA10G$"),
    "RTX 3090": Gpu(71, 936, 24, r"\bRTX 3090$"),
    "RTX 4090": Gpu(165, 1008, 24, r"\bRTX 4090$"),
    "RTX 5090": Gpu(209, 1792, 32, r"\bRTX 5090$"),
    "RTX 6000 Ada": Gpu(364, 960, 48, r"\bRTX 6000 Ada Generation$"),
    "T4": Gpu(65, 320, 16, r"\bT4$", bfloat16=False),
    "V100": Gpu(125, 900, 16, r"\bV100-SXM[23]-(16|32)GB$", bfloat16=False),
}
"""NVIDIA's data sheets and, of GeForce, its papers on Ampere, Ada and Blackwell: without sparsity, which doubles what
some of them state, and with sums in float32, which halve the rate of GeForce."""


def gpu_named(name: str) -> str | None:
    """The name in the table of a GPU that a person names, however it is spaced and capitalised; None where none is."""
    return {_plain(known): known for known in GPUS}.get(_plain(name))


def gpu_called(name: str) -> Gpu | None:
    """The GPU that CUDA calls so; None where its rates are not known."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.called, name)), None)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())

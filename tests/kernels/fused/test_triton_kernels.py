"""The kernels compiled for GPUs that are not here, and their numbers where Triton interprets them on a CPU.

They run where triton can be imported, which the development dependencies install beside a torch for CPUs too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loraft.kernels.fused.trials import PAIRS
from loraft.kernels.fused.triton_ops import AS_WRITTEN

triton = pytest.importorskip("triton", reason="triton is not installed: it has wheels for Linux on x86-64")

ROOT = Path(__file__).parents[3]
TYPES = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}
NORM = {"OFFSET": 0.0, "ROUNDS": True, "BLOCK": 4096}
TURN = {
    "QUERY_HEADS": 32, "KEY_HEADS": 8, "HALF": 64, "BACKWARD": False, "BLOCK_QUERY": 32, "BLOCK_KEY": 8,
    "BLOCK_HALF": 64,
}  # fmt: skip
STRIDES = dict.fromkeys(
    ("time", "query_by_batch", "query_by_head", "query_by_token", "key_by_batch", "key_by_head", "key_by_token",
     "by_row"), "i32",
)  # fmt: skip
KERNELS: dict[str, tuple[list[str], dict[str, str], dict[str, Any]]] = {
    "norm_forward": (["x", "weight", "out"], {"inverse": "*fp32", "columns": "i32", "epsilon": "fp32"}, NORM),
    "norm_backward": (["gradient", "x", "weight", "out"], {"inverse": "*fp32", "columns": "i32"}, NORM),
    "gated_forward": (["gate", "up", "out"], {"numbers": "i32"}, {"GELU": False, "BLOCK": 1024}),
    "gated_backward": (
        ["gradient", "gate", "up", "d_gate", "d_up"], {"numbers": "i32"}, {"GELU": True, "BLOCK": 1024},
    ),
    "rotate": (["query", "key", "query_out", "key_out", "cos", "sin"], STRIDES, TURN),
}  # fmt: skip
"""Of each kernel the tensors in the model's dtype, its other arguments by type, and what it is compiled for."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for_gpus_that_are_not_here(name: str, dtype: str, capability: int) -> None:
    from loraft.kernels.fused import triton_kernels

    tensors, others, constants = KERNELS[name]
    function = getattr(triton_kernels, name)
    types = dict.fromkeys(tensors, TYPES[dtype]) | others | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(
        function, {argument: types[argument] for argument in function.arg_names}, constants
    )
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options=dict(AS_WRITTEN))
    assert f".target sm_{capability}" in made.asm["ptx"]
    assert made.asm["cubin"][:4] == b"\x7fELF"


@pytest.mark.slow
def test_interpreted_on_a_cpu_they_give_the_numbers_of_the_plain_forms() -> None:
    code = (
        "import json, torch; from loraft.kernels.fused import trials; print(json.dumps({f'{name} {dtype}': "
        "trials.difference(name, 'cpu', dtype) for name in trials.PAIRS for dtype in trials.TOLERANCE}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    off = json.loads(done.stdout)
    assert len(off) == 3 * len(PAIRS)
    # Its bfloat16 is cut off and not rounded; float16 shows that both round in the same places.
    most = {"float32": 1.5, "float16": 0.05, "bfloat16": 1.5}
    for name, difference in off.items():
        assert difference <= most[name.rpartition(".")[2]], name

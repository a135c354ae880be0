"""How long a step is said to take: what is counted beside what torch counts, and the rates that it stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from loraft import api
from loraft.api.predicted_time import StepWork, predicted_time, work_of_a_step
from loraft.config.change_config import with_values
from loraft.config.gpus import GPUS, Gpu, gpu_called, gpu_named
from loraft.errors import InvalidInputError
from loraft.models.device import StatedDevice
from loraft.planning.run_plan import plan_run
from tests.tiny import save_tiny
from tests.training.building import judged, preferred, tiny_config, write_rows

NAMES = {
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA A100 80GB PCIe": "A100 80GB",
    "NVIDIA A100-PCIE-40GB": "A100 40GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "NVIDIA A10G": "A10G",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "Tesla T4": "T4",
    "Tesla V100-SXM2-16GB": "V100",
}
"""What CUDA calls them."""


def added(_: Any, a: list[int], b: list[int], **rest: Any) -> int:
    """The operations of `addmm_`, which torch does not count."""
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "checkpointing", "layers"),
    [("lora", False, "all"), ("lora", True, "last:6"), ("full", True, "all")],
)
def test_operations_of_products_are_those_that_torch_counts(
    tmp_path: Path, method: str, checkpointing: bool, layers: str
) -> None:
    save_tiny(tmp_path / "model", num_hidden_layers=12, hidden_size=64, intermediate_size=192)
    write_rows(tmp_path / "train.jsonl", [{"prompt": "a b c " * (3 + n), "completion": " d e f"} for n in range(6)])
    config = tiny_config(
        tmp_path,
        method=method,
        lora__layers=layers,
        data__shared_prefix="off",
        training__gradient_checkpointing=checkpointing,
        training__per_device_train_batch_size=6,
        training__max_steps=1,
    )
    tokens, work = work_of_a_step(plan_run(config))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        api.train(config)
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(counts.get(f"aten.{name}", 0) for name in ("mm", "addmm", "addmm_"))
    assert tokens > 100
    assert work.products == pytest.approx(counted, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "epochs"), [("simpo", 1), ("dpo", 1), ("dpo", 2), ("kto", 1)], ids=str)
def test_what_a_preference_is_compared_with_is_counted(tmp_path: Path, loss: str, epochs: int) -> None:
    """To a tenth and some more: mismatched answers are a little longer or shorter than those of the step."""
    save_tiny(tmp_path / "model", num_hidden_layers=6, hidden_size=64, intermediate_size=192)
    rows = (judged if loss == "kto" else preferred)(12)
    config = tiny_config(
        tmp_path,
        task="preference",
        preference__loss=loss,
        data__train=str(write_rows(tmp_path / "rows.jsonl", rows)),
        data__shared_prefix="off",
        training__per_device_train_batch_size=len(rows),
        training__max_steps=epochs,
    )
    plan = plan_run(config)
    _, work = work_of_a_step(plan)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        api.train(config)
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(counts.get(f"aten.{name}", 0) for name in ("mm", "addmm", "addmm_"))
    of_the_reference = work_of_a_step(plan_run(with_values(config, {"training.max_steps": 1})))[1].products
    once = of_the_reference - work.products  # where it is kept, it is computed before the first step
    assert work.products * epochs + once == pytest.approx(counted, rel=0.15)


def test_operations_are_those_that_a_hand_counts(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", num_hidden_layers=2, hidden_size=64)
    write_rows(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "a b"}])
    plan = plan_run(tiny_config(tmp_path, data__format="text", method="full"))
    tokens, work = work_of_a_step(plan)
    assert tokens == sum(example.tokens for example in plan.data.train)
    of_layers = sum(map(sum, plan.shape.matrices)) * tokens
    of_the_head = plan.shape.vocabulary * 64 * sum(example.trained for example in plan.data.train)
    assert work.products == 6 * (of_layers + of_the_head)
    squares = sum(example.tokens**2 for example in plan.data.train)
    # Two products of two operations, half of each row looked back on, once forward and two and a half times backward.
    assert work.attention == 2 * 4 * squares * 64 / 2 * 3.5
    frozen = work_of_a_step(plan_run(tiny_config(tmp_path, data__format="text", training__gradient_checkpointing=True)))
    adapter = plan_run(tiny_config(tmp_path, data__format="text")).shape.trainable_parameters
    assert frozen[1].products == 6 * of_layers + 4 * of_the_head + 8 * adapter * tokens


def test_seconds_are_those_of_what_takes_longest() -> None:
    gpu = Gpu(teraflops=100, gigabytes_a_second=1000, gigabytes=24, called="")
    by_products = StepWork(products=80e12, attention=20e12, weights=1e9, besides=1e11, launches=0)
    assert by_products.seconds(gpu, used=0.5, launch=0) == pytest.approx(2 + 0.1)
    by_weights = StepWork(products=1, attention=1, weights=5e11, besides=1e11, launches=0)
    assert by_weights.seconds(gpu, used=0.5, launch=0) == pytest.approx(0.5 + 0.1)
    by_launches = StepWork(products=1, attention=1, weights=1, besides=1, launches=1000)
    assert by_launches.seconds(gpu, used=0.5, launch=1e-5) == pytest.approx(0.01)


def test_every_gpu_is_known_by_the_name_that_cuda_has_for_it() -> None:
    assert {gpu_called(called): known for called, known in NAMES.items()} == {gpu: name for name, gpu in GPUS.items()}
    others = ("GH200 480GB", "H100 NVL", "A100-SXM4-40GB MIG 1g.5gb", "A10", "GeForce RTX 4090 D", "L40", "T400 4GB",
              "GeForce RTX 4090 Laptop GPU")  # fmt: skip
    assert [called for called in others if gpu_called(f"NVIDIA {called}")] == []
    assert (gpu_named("h100-sxm"), gpu_named("NVIDIA GeForce RTX4090"), gpu_named("H100")) == (
        "H100 SXM", "RTX 4090", None,
    )  # fmt: skip


def test_a_gpu_without_bfloat16_is_planned_for_in_float16(tmp_path: Path) -> None:
    plan = plan_run(tiny_config(tmp_path, model__dtype="auto"), StatedDevice("cuda", gpu_name="T4"))
    assert (plan.placement.dtype, plan.placement.total_bytes) == (torch.float16, 16 * 10**9)
    assert predicted_time(plan)[0] is not None
    more = plan_run(tiny_config(tmp_path, model__dtype="auto"), StatedDevice("cuda", 32 * 10**9, "V100"))
    assert more.placement.total_bytes == 32 * 10**9


@pytest.mark.parametrize(
    ("device", "changed", "why"),
    [
        (StatedDevice("cpu"), {}, "CPU"),
        (StatedDevice("cuda", 24 * 10**9), {}, "`gpu_name`"),
        (StatedDevice("cuda", gpu_name="L4"), {}, "float32"),
        (StatedDevice("cuda", gpu_name="T4"), {"model__dtype": "bfloat16"}, "no bfloat16"),
        (StatedDevice("cuda", gpu_name="L4"), {"model__dtype": "bfloat16", "model_type": "mixtral"}, "experts"),
        (StatedDevice("cuda", gpu_name="L4"), {"model__dtype": "bfloat16", "model__stream_layers": True}, "stream"),
    ],
)
def test_why_no_time_is_predicted(tmp_path: Path, device: StatedDevice, changed: dict[str, Any], why: str) -> None:
    predicted, told = predicted_time(plan_run(tiny_config(tmp_path, **changed), device))
    assert predicted is None
    assert told is not None
    assert why in told


def test_a_gpu_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        api.check(tiny_config(tmp_path), gpu_name="RTX 409")
    assert error.value.problems[0].parameter == "gpu_name"
    assert "RTX 4090" in str(error.value.problems[0].remedy)

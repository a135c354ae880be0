"""C9 and C39 over ranks: the gradient of a step and the loss of an evaluation are those of one process."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loraft.api.exchanged import memory_alone, of_strategy
from loraft.distributed.exchange import Exchange
from loraft.distributed.ranks import Ranks
from loraft.distributed.sharding import own_part
from loraft.planning.run_plan import plan_run
from loraft.training.built_model import build_model
from loraft.training.run_dir import RunFolder
from loraft.training.train_step import Throughput, Trainer, evaluate_loss, take_step
from tests.distributed.forked import forked
from tests.training.building import Recorder, judged, tiny_config, write_rows

SPLITS: dict[str, dict[str, Any]] = {
    "packed": {},
    "padded": {"data__packing": "off"},
    "filled": {"data__packing": "fill", "data__max_length": 64},
}
"""How the rows of a step may lie in its batches."""
CLOSE = 1e-5
"""Float32 sums of the same numbers in another order."""


def measured(folder: Path, ranks: Ranks, batches: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """The loss, the gradient and the norm of the first step, and the loss of an evaluation on the training rows."""
    config = tiny_config(folder, **overrides)
    plan = plan_run(config, ranks=ranks, batches_a_step=batches)
    run = Trainer(plan, RunFolder(folder, writes=False), build_model(plan, ranks), str, lambda _: None, [], ranks)
    run.optimizer = recorded = Recorder(run)
    clock = Throughput(0)
    take_step(run, 1, run.prepare(next(plan.batches.windows(plan.data.train, 0, 0, (0, 0)))), clock)
    found = evaluate_loss(run, plan.data.train, 3)
    assert found is not None, "nothing stopped it"
    gradient = torch.cat([each.flatten() for each in recorded.steps[0].values()])
    return {
        "gradient": gradient.numpy(), "loss": clock.loss, "norm": clock.norm, "tokens": clock.tokens,
        "eval": (found.loss, found.targets, dict(found.figures)),
        "bytes": sum(part.numel() * part.element_size() for part in map(own_part, run.loss.parameters())),
    }  # fmt: skip


def assert_same(each: dict[str, Any], alone: dict[str, Any]) -> None:
    """What a rank measured is what one process did."""
    largest = abs(alone["gradient"]).max()
    assert abs(each["gradient"] - alone["gradient"]).max() <= CLOSE * max(1.0, largest)
    assert each["loss"] == pytest.approx(alone["loss"], rel=CLOSE)
    assert each["norm"] == pytest.approx(alone["norm"], rel=CLOSE)
    assert each["tokens"] == alone["tokens"]
    assert each["eval"][0] == pytest.approx(alone["eval"][0], rel=1e-6)
    assert each["eval"][1:] == alone["eval"][1:]


CASES = [
    ("causal_lm", "packed", "lora"), ("causal_lm", "padded", "full"), ("causal_lm", "filled", "lora"),
    ("seq2seq_lm", "padded", "lora"), ("seq2seq_lm", "padded", "full"),
    ("seq_cls", "packed", "lora"), ("seq_cls", "padded", "full"), ("causal_lm", "packed", "qlora"),
    ("preference", "packed", "lora"), ("preference", "padded", "qlora"), ("seq2seq_preference", "padded", "lora"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("task", "split", "method"), CASES)
def test_c9_c39_gradient_and_evaluation_are_those_of_one_process(
    tmp_path: Path, task: str, split: str, method: str
) -> None:
    overrides = {"task": task, "method": method, "training__per_device_train_batch_size": 2, **SPLITS[split]}
    tiny_config(tmp_path, **overrides)
    (alone,) = forked(1, lambda ranks: measured(tmp_path, ranks, 4, overrides))
    assert not isinstance(alone, str), alone
    for world in (2, 3):
        for each in forked(world, lambda ranks: measured(tmp_path, ranks, 4, overrides)):
            assert not isinstance(each, str), each
            assert_same(each, alone)


def compared(folder: Path, ranks: Ranks, overrides: dict[str, Any]) -> tuple[float, float, float]:
    """What a step of kto is compared with once all weights have moved, and the losses of step and evaluation."""
    plan = plan_run(tiny_config(folder, **overrides), ranks=ranks, batches_a_step=4)
    run = Trainer(plan, RunFolder(folder, writes=False), build_model(plan, ranks), str, lambda _: None, [], ranks)
    for weight in run.adapted.trainable.values():
        weight.data.add_(0.05)
    clock = Throughput(0)
    take_step(run, 1, run.prepare(next(plan.batches.windows(plan.data.train, 0, 0, (0, 0)))), clock)
    kl, found = run.loss.kl.item(), evaluate_loss(run, plan.data.train, 3)
    assert found is not None, "nothing stopped it"
    return kl, clock.loss, found.loss


@pytest.mark.slow
def test_answers_that_stand_alone_are_compared_with_the_same_number_on_every_rank(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "judged.jsonl", judged())
    overrides = {
        "task": "preference", "preference__loss": "kto", "data__train": str(rows), "training__optim": "adamw",
        "training__per_device_train_batch_size": 2,
    }  # fmt: skip
    tiny_config(tmp_path, **overrides)
    (alone,) = forked(1, lambda ranks: compared(tmp_path, ranks, overrides))
    assert not isinstance(alone, str), alone
    assert alone[0] != pytest.approx(0, abs=0.1)
    for strategy in ("ddp", "fsdp2"):
        parts = {**overrides, "distributed__strategy": strategy}
        for each in forked(2, lambda ranks, parts=parts: compared(tmp_path, ranks, parts)):  # type: ignore[misc]
            assert not isinstance(each, str), each
            assert each == pytest.approx(alone, rel=1e-5)


class Exchanged(TorchDispatchMode):
    """Counts the bytes of what is gathered of all ranks, summed in parts, and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = dict.fromkeys(("allgather", "reduce_scatter", "allreduce"), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for name, tensors in (("allgather", args[:1]), ("reduce_scatter", args[1:2]), ("allreduce", args[0:1])):
            if f"c10d._{name}" in str(func) or f"c10d.{name}" in str(func):
                whole = tensors[0] if isinstance(tensors[0], list | tuple) else tensors
                self.bytes[name] += sum(tensor.nbytes for tensor in whole)
        return func(*args, **(kwargs or {}))


def exchanged(folder: Path, ranks: Ranks, overrides: dict[str, Any]) -> tuple[dict[str, int], Exchange]:
    """The bytes that a step exchanges, and those that the plan has."""
    plan = plan_run(tiny_config(folder, **overrides), ranks=ranks)
    run = Trainer(plan, RunFolder(folder, writes=False), build_model(plan, ranks), str, lambda _: None, [], ranks)
    prepared = run.prepare(next(plan.batches.windows(plan.data.train, 0, 0, (0, 0))))
    with Exchanged() as counted:
        take_step(run, 1, prepared, Throughput(0))
    return counted.bytes, of_strategy(plan, memory_alone(plan), plan.config.distributed, ranks)[0]


IN_PARTS = {"strategy": "fsdp2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"distributed": IN_PARTS},
        {"distributed": IN_PARTS, "method": "full"},
        {"distributed": IN_PARTS, "method": "qlora", "training__gradient_accumulation_steps": 2},
        {"distributed": {**IN_PARTS, "reshard": False}},
    ],
)
def test_a_step_exchanges_the_bytes_that_the_plan_says(tmp_path: Path, overrides: dict[str, Any]) -> None:
    tiny_config(tmp_path, **overrides)
    for found in forked(2, lambda ranks: exchanged(tmp_path, ranks, overrides)):
        assert not isinstance(found, str), found
        counted, planned = found
        assert counted["allgather"] == pytest.approx(planned.gathered, rel=0.05)
        assert counted["reduce_scatter"] == pytest.approx(planned.scattered, rel=0.05)
        assert counted["allreduce"] == pytest.approx(planned.summed, rel=0.05, abs=64)  # the counts of tokens


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(("batches", "world"), [*product((1, 2, 3, 4, 7), (2, 3, 4))])
def test_each_row_of_a_step_is_read_by_one_rank(tmp_path: Path, batches: int, world: int) -> None:
    config = tiny_config(tmp_path, training__per_device_train_batch_size=2)
    plan = plan_run(config, batches_a_step=batches)
    for window in plan.batches.windows(plan.data.train, 0, 0, (0, 0)):
        shares = [Ranks(rank, world).share(window, 2, filled=False) for rank in range(world)]
        assert len({len(share.batches) for share in shares}) == 1, "ranks keep in step"
        read = [row.where for share in shares for batch in share.batches[: share.counted] for row in batch]
        assert sorted(read) == sorted(row.where for batch in window.batches for row in batch)
        assert all(0 < len(batch) <= 2 for share in shares for batch in share.batches)

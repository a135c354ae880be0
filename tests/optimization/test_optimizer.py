"""Each optimizer's state: restored bit for bit, of the size that is planned, and by the rule that its name says."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import Lion8bit
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from loraft.config.schema import TrainingSection
from loraft.errors import ConfigError
from loraft.optimization.optimizer import (
    KINDS,
    TrainedTensor,
    build_optimizer,
    hidden_matrices,
    optimizer_state,
    require_optimizer,
    resolve_optim,
    restore_optimizer,
)
from loraft.planning.run_plan import plan_run
from loraft.training.loop import fit
from tests.tiny import mostly_slow
from tests.training.building import tiny_config, tiny_fit

ON_A_CPU = sorted(name for name in KINDS if not name.startswith("paged_"))
SHARED = ("qmap1", "qmap2", "step", "RMS")
"""What all tensors share, and single numbers: none of it grows with what is trained."""


def test_paged_optimizers_on_a_cpu_are_the_unpaged_ones_and_it_is_said() -> None:
    name, note = resolve_optim(TrainingSection(optim="paged_adamw_8bit"), device="cpu")
    assert name == "adamw_8bit"
    assert note is not None
    assert "paging" in note
    assert resolve_optim(TrainingSection(), device="cuda") == ("adamw", None)
    assert resolve_optim(TrainingSection(optim="paged_adamw_8bit"), device="cuda") == ("paged_adamw_8bit", None)


def section(optim: str, **values: Any) -> TrainingSection:
    return TrainingSection(optim=optim, learning_rate=0.1, **values)  # type: ignore[arg-type]


def begin(training: TrainingSection, **options: Any) -> tuple[dict[str, nn.Parameter], Optimizer]:
    """Weights and their optimizer: 8192 numbers, since bitsandbytes keeps smaller tensors in 32 bits; two vectors."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"head": (16, 8), "layer.lora_A.weight": (64, 128), "layer.lora_B.weight": (128, 64), "norm": (7,)}
    weights = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    hidden = {name for name in weights if name.startswith("layer")} if training.optim == "muon" else set()
    optimizer = build_optimizer(weights, training, hidden=hidden, **options)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["rate_factor"]
    return weights, optimizer


def step(weights: Mapping[str, nn.Parameter], optimizer: Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("before", [1.0, 16.0], ids=["same groups", "other groups"])
@pytest.mark.parametrize("optim", ON_A_CPU)
def test_state_is_restored_bit_for_bit(optim: str, before: float) -> None:
    """C30's other half: what was saved is what is there, and the next step gives the same bytes."""
    weights, optimizer = begin(section(optim, weight_decay=0.1), plus_ratio=before)
    for seed in (1, 2):
        step(weights, optimizer, seed)
    tensors, numbers = optimizer_state(optimizer, weights)
    own = {value.data_ptr() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)}
    assert own.isdisjoint(tensor.data_ptr() for tensor in tensors.values()), "what is saved stays as it is"
    others, another = begin(section(optim, weight_decay=0.1))
    for name, weight in others.items():
        weight.data.copy_(weights[name].data)
    restore_optimizer(another, others, tensors.keys(), lambda name, _: tensors[name], numbers)
    for group in optimizer.param_groups:  # the ratio was changed meanwhile: B goes on with its own state
        group["lr"] = 0.1
    step(weights, optimizer, 3)
    step(others, another, 3)
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


@pytest.mark.parametrize("optim", ON_A_CPU)
def test_planned_bytes_are_those_of_the_state(optim: str) -> None:
    weights, optimizer = begin(section(optim))
    step(weights, optimizer, 1)
    for name, weight in weights.items():
        tensor = TrainedTensor(tuple(weight.shape), hidden=name.startswith("layer"))
        assert KINDS[optim].state_bytes(tensor) == _bytes_of(optimizer.state[weight]), name


def _bytes_of(state: Mapping[str, Any]) -> int:
    return sum(value.nbytes for key, value in state.items() if isinstance(value, Tensor) and key not in SHARED)


PLANNED: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"lora__use_dora": True},
    "full": {"method": "full"},
    "classifier": {"task": "seq_cls"},
    "t5": {"task": "seq2seq_lm", "method": "full"},
}


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("optim", "options"),
    mostly_slow(
        product(["muon", "adafactor", "ademamix_8bit"], PLANNED),
        *(("muon", options) for options in ("dora", "full", "t5")),
        *((optim, "full") for optim in ("adafactor", "ademamix_8bit")),
    ),
)
def test_the_plan_knows_every_tensor_and_its_state(tmp_path: Path, optim: str, options: str) -> None:
    config = tiny_config(tmp_path, training__optim=optim, training__max_steps=1, **PLANNED[options])
    run, state = tiny_fit(config)
    hidden = hidden_matrices(run.adapted)
    trained = [TrainedTensor(tuple(each.shape), name in hidden) for name, each in run.adapted.trainable.items()]
    assert sorted(run.plan.shape.trained) == sorted(trained)
    fit(run, state)
    assert run.plan.memory.optimizer == sum(_bytes_of(each) for each in run.optimizer.state.values())


def test_muon_is_for_matrices_inside_the_layers_and_the_plan_says_so(tmp_path: Path) -> None:
    full = tiny_config(tmp_path / "full", training__optim="muon", method="full", training__max_steps=1)
    run, _ = tiny_fit(full)
    of_muon = {id(weight) for group in run.optimizer.param_groups if "momentum" in group for weight in group["params"]}
    names = {name for name, weight in run.adapted.trainable.items() if id(weight) in of_muon}
    assert names == {name for name in run.adapted.trainable if ".layers." in name and name.endswith("proj.weight")}
    others = len(run.adapted.trainable) - len(names)
    assert f"training.optim muon: Muon trains {len(names)} matrices inside the layers, AdamW the {others} " in "".join(
        run.plan.notes
    )


def test_muon_steps_as_torch_does_and_adamw_the_rest() -> None:
    training = section("muon", weight_decay=0.1)
    weights, ours = begin(training)
    copies, _ = begin(training)
    muon = torch.optim.Muon(
        [copies["layer.lora_A.weight"], copies["layer.lora_B.weight"]], lr=0.1, weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    decays = [{"params": [copies["head"]], "weight_decay": 0.1}, {"params": [copies["norm"]], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(decays, lr=0.1, fused=True)
    for seed in (1, 2, 3):
        step(weights, ours, seed)
        step(copies, muon, seed)
        adamw.step()
    for name, weight in weights.items():
        assert torch.equal(weight, copies[name]), name


def test_adafactor_is_that_of_transformers_trainer() -> None:
    weights, ours = begin(section("adafactor"))
    copies, _ = begin(section("adafactor"))
    theirs = Adafactor(list(copies.values()), lr=0.1, scale_parameter=False, relative_step=False)
    for seed in (1, 2, 3):
        step(weights, ours, seed)
        step(copies, theirs, seed)
    for name, weight in weights.items():
        assert torch.equal(weight, copies[name]), name


def test_b_of_lora_plus_learns_at_its_own_rate_as_peft_has_it(tmp_path: Path) -> None:
    """The same weights after three steps as with peft's own optimizer for LoRA+."""
    config = tiny_config(tmp_path, lora__plus_ratio=16, training__max_steps=1)
    run, _ = tiny_fit(config)
    assert "lora.plus_ratio 16: B learns at 0.16, all else at 0.01" in run.plan.notes
    other, _ = tiny_fit(config)
    theirs = create_loraplus_optimizer(
        other.adapted.model,
        torch.optim.AdamW,
        lr=0.01,
        loraplus_lr_ratio=16,
        fused=True,  # type: ignore[arg-type]
    )
    for seed in (1, 2, 3):
        for group in run.optimizer.param_groups:
            group["lr"] = 0.01 * group["rate_factor"]
        step(run.adapted.trainable, run.optimizer, seed)
        step(other.adapted.trainable, theirs, seed)
    for name, weight in run.adapted.trainable.items():
        torch.testing.assert_close(weight, other.adapted.trainable[name], rtol=1e-6, atol=1e-7)


def test_a_step_of_the_loop_moves_b_by_its_own_rate(tmp_path: Path) -> None:
    """AdamW's first step is as long as the rate: that of B is 16 times that of plain LoRA."""
    moved = []
    for ratio in (1.0, 16.0):
        run, state = tiny_fit(tiny_config(tmp_path, lora__plus_ratio=ratio, training__max_steps=1))
        fit(run, state)
        moved.append({n: w.detach().abs().max().item() for n, w in run.adapted.trainable.items() if "lora_B" in n})
    for name, plain in moved[0].items():
        assert moved[1][name] == pytest.approx(16 * plain, rel=1e-4)


class BrokenError(RuntimeError):
    """What a native library raises."""


def test_an_optimizer_that_cannot_step_here_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrokenError("no kernel for this device\nand more")

    monkeypatch.setattr(Lion8bit, "step", fail)
    with pytest.raises(ConfigError, match="lion_8bit cannot take a step on this cpu: no kernel for this device"):
        plan_run(tiny_config(tmp_path, training__optim="lion_8bit"))
    require_optimizer(section("adamw_8bit"), "cpu")

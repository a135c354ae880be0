"""Base and update against peft's own forward, values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from loraft.kernels.int8_linear import Int8Linear
from loraft.kernels.linear_weights import unpacked
from loraft.kernels.low_rank import lora_linear
from loraft.kernels.low_rank.adapted_products import Adapted, adapted_products
from loraft.kernels.low_rank.dora import norms_from_factors
from loraft.kernels.low_rank.lora_linear import Together, patch_lora_linears
from loraft.models.registry import FAMILIES
from loraft.planning.run_plan import plan_run
from loraft.training.built_model import build_model
from tests.tiny import mostly_slow, tiny_model
from tests.training.wide import wide_config

RSLORA, DORA, DROPPING = {"use_rslora": True}, {"use_dora": True}, {"lora_dropout": 0.5}


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("options", mostly_slow([{}, RSLORA, DORA, DORA | DROPPING], RSLORA, DORA), ids=str)
def test_it_is_pefts_forward_and_backward(model_type: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False,
        fan_in_fan_out=model_type == "gpt2", **options,
    )  # fmt: skip
    plain = get_peft_model(tiny_model(model_type), config)
    for name, weight in plain.named_parameters():
        if "magnitude" in name:
            weight.data *= 0.5 + torch.rand_like(weight)
    ours = copy.deepcopy(plain)
    norms_from_factors(ours, "default")
    patch_lora_linears(ours, "default", FAMILIES[model_type].same_input)
    ids = torch.randint(3, 300, (2, 9))
    results = []
    for model in (plain.train(), ours.train()):
        torch.manual_seed(1)  # for the base's own dropout
        logits = model(input_ids=ids).logits
        logits.float().square().mean().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    # float32 sums in another order, through three layers to logits of about 4.
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)
    if "use_dora" not in options:
        ids = ids[:1]
        assert torch.equal(plain.eval()(input_ids=ids).logits, ours.eval()(input_ids=ids).logits)


def test_dropout_is_drawn_anew() -> None:
    dropping = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    ).train()
    patch_lora_linears(dropping, "default")
    ids = torch.randint(3, 300, (1, 9))
    assert not torch.equal(dropping(input_ids=ids).logits, dropping(input_ids=ids).logits)


NAMES = ("q_proj", "k_proj", "v_proj")


class Outer(nn.Module):
    """A module with `Projections` in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Projections()

    def forward(self, *inputs: Tensor, order: tuple[str, ...] = NAMES) -> Tensor:
        out: Tensor = self.inner(*inputs, order=order)
        return out


class Projections(nn.Module):
    """Three linear modules that may be given one input, in any order, or several."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(6, 5), nn.Linear(6, 3, bias=False), nn.Linear(6, 4)

    def forward(self, *inputs: Tensor, order: tuple[str, ...] = NAMES) -> Tensor:
        outputs = {name: getattr(self, name)(inputs[place % len(inputs)]) for place, name in enumerate(order)}
        return torch.cat([outputs[name] for name in NAMES], -1)


def adapted_projections(**options: Any) -> tuple[PeftModel, PeftModel]:
    """The same in float64, as peft computes them and with the three together."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=list(NAMES), rank_pattern={"k_proj": 1},
        init_lora_weights=False, **options,
    )  # fmt: skip
    plain = get_peft_model(Outer(), config).double().train()
    for module in plain.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    ours = copy.deepcopy(plain)
    patch_lora_linears(ours, "default", [NAMES])
    return plain, ours


def gradients(model: nn.Module, out: Tensor, *inputs: Tensor) -> list[Tensor]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(out.sin().sum(), [*inputs, *trained]))


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ("k_proj", "q_proj", "v_proj")])
@pytest.mark.parametrize(("count", "options"), [(1, {}), (2, {}), (3, {}), (1, DROPPING), (1, {"bias": "all"})])
def test_layers_of_one_input_are_computed_together_and_others_by_themselves(
    order: tuple[str, ...], count: int, options: dict[str, Any]
) -> None:
    plain, ours = adapted_projections(**options)
    inputs = [torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    for seed in range(2):
        torch.manual_seed(seed)
        expected = plain(*inputs, order=order)
        torch.manual_seed(seed)
        out = ours(*inputs, order=order)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(gradients(ours, out, *inputs), gradients(plain, expected, *inputs))


def test_one_product_gives_the_outputs_of_all_and_none_is_kept() -> None:
    _, ours = adapted_projections()
    out = ours(torch.randn(2, 7, 6, dtype=torch.float64))
    functions = {view.next_functions[0][0] for view, _ in out.grad_fn.next_functions}
    assert len(functions) == 1
    readers = ours.base_model.model.inner.q_proj._readers
    assert readers is ours.base_model.model.inner.v_proj._readers
    assert readers.read is None
    assert not readers.ready


def test_nothing_may_be_read() -> None:
    _, ours = adapted_projections()
    assert ours(torch.zeros(0, 6, dtype=torch.float64)).shape == (0, 12)


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_together_are_those_of_finite_differences(drops: bool, scaled: bool) -> None:
    torch.manual_seed(0)
    bases = [nn.Linear(6, size).double().requires_grad_(False) for size in (5, 3)]
    shapes = ((3, 6), (2, 6), (5, 2), (5,), (1, 6), (3, 1), (3,))
    x, *weights = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)

    def outputs(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        a_b_factors = zip(bases, weights[0::3], weights[1::3], weights[2::3], strict=True)
        layers = [Adapted(base, a, b, 1.5, factors if scaled else None) for base, a, b, factors in a_b_factors]
        dropped = x * torch.tensor([2.0, 0, 0, 2, 2, 0]) if drops else None
        return adapted_products(x, layers, torch.float64, dropped)

    assert torch.autograd.gradcheck(outputs, (x, *weights))


@pytest.mark.parametrize("options", [{}, DROPPING])
def test_recomputing_gives_the_same_bits(options: dict[str, Any]) -> None:
    _, ours = adapted_projections(**options)
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    kept = gradients(ours, ours(x), x)
    torch.manual_seed(1)
    anew = gradients(ours, checkpoint(ours, x, use_reentrant=False), x)
    assert all(torch.equal(one, other) for one, other in zip(kept, anew, strict=True))


@pytest.mark.parametrize("one", NAMES)
def test_a_layer_that_is_not_plain_goes_pefts_way(one: str) -> None:
    """Disabled or in evaluation: the other two do not mind, nor that each draws dropout of its own."""
    plain, ours = adapted_projections()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    for change in (lambda layer: layer.eval(), lambda layer: layer.enable_adapters(False)):
        for model in (plain, ours):
            change(getattr(model.base_model.model.inner, one))
        torch.testing.assert_close(ours(x), plain(x))
    dropping = adapted_projections(**DROPPING)[1]
    assert not torch.equal(dropping(x), dropping(x))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
def test_products_are_right_in_any_mix_of_dtypes(
    rows: torch.dtype, weight: torch.dtype, autocast: torch.dtype | None
) -> None:
    """Against the formula in float32; what is rounded to bfloat16 has an error of some tenths of a per cent."""
    torch.manual_seed(0)
    model: nn.Module = get_peft_model(
        nn.Sequential(nn.Linear(64, 48)).to(weight),  # type: ignore[arg-type]
        LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False),
    ).train()
    layer = model.get_submodule("base_model.model.0")
    layer.cast_input_dtype_enabled = False  # type: ignore[assignment]
    a, b = (getattr(layer, name)["default"].float().weight for name in ("lora_A", "lora_B"))
    patch_lora_linears(model, "default")
    x = torch.randn(2, 7, 64).to(rows).requires_grad_()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        out = layer(x)
    exact = [tensor.detach().float().requires_grad_() for tensor in (x, a, b)]
    base = nn.functional.linear(exact[0], layer.base_layer.weight.float(), layer.base_layer.bias.float())  # type: ignore[union-attr,operator]
    expected = base + 1.5 * (exact[0] @ exact[1].T) @ exact[2].T
    given = torch.randn(expected.shape)
    ours = torch.autograd.grad((out.float() * given).sum(), [x, a, b])
    theirs = torch.autograd.grad((expected * given).sum(), exact)
    in_float32 = autocast is None and rows == weight == torch.float32
    for mine, right in zip((out, *ours), (expected, *theirs), strict=True):
        assert (mine.float() - right).norm() < (1e-5 if in_float32 else 1e-2) * right.norm()
    assert [mine.dtype for mine in ours] == [rows, torch.float32, torch.float32]


def _in_4_bits(weight: Tensor, bias: Tensor) -> nn.Module:
    base = Linear4bit(512, 1024, compute_dtype=torch.bfloat16, quant_type="nf4")
    base.load_state_dict({"weight": weight, "bias": bias})
    return base.to("cpu")


def _in_8_bits(weight: Tensor, bias: Tensor) -> nn.Module:
    base = Int8Linear(512, 1024, has_fp16_weights=False)
    base.load_state_dict({"weight": weight, "bias": bias})
    return base.to("cpu")


def _of_gpt2(weight: Tensor, bias: Tensor) -> nn.Module:
    base = Conv1D(1024, 512).bfloat16()
    base.load_state_dict({"weight": weight.T, "bias": bias})
    return base


def _without_bias(weight: Tensor, _: Tensor) -> nn.Module:
    base = nn.Linear(512, 1024, bias=False).bfloat16()
    base.load_state_dict({"weight": weight})
    return base


@pytest.mark.slow_after(8)
@pytest.mark.parametrize("base_of", [_without_bias, _of_gpt2, _in_4_bits, _in_8_bits])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("scaled", [False, True])
def test_an_update_far_below_the_rounding_of_bfloat16_is_in_the_outputs(
    scaled: bool, size: float, base_of: Callable[[Tensor, Tensor], nn.Module]
) -> None:
    """C52: added to outputs that are rounded, as peft adds it, what is below half of their last place is lost.

    With DoRA too, whose factors multiply the sum: rounded once more, it has all of the update.
    """
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((1024, 512), (1024,)))
    base: Any = base_of(weight / 512**0.5, bias).requires_grad_(False)
    x, a, b = (torch.randn(shape, generator=generator) for shape in ((256, 512), (8, 512), (1024, 8)))
    x, a, b = x.bfloat16(), a / 512**0.5, b * size
    factors = torch.rand(1024, generator=generator) + 0.5 if scaled else None
    (ours,) = adapted_products(x, [Adapted(base, a, b, 1.5, factors)], torch.bfloat16)
    u = x @ a.bfloat16().T
    theirs = base(x) + u @ b.bfloat16().T * 1.5
    update = 1.5 * u.double() @ b.bfloat16().double().T
    right = unpacked(base).double()
    plain = nn.functional.linear(x.double(), right, None if base.bias is None else base.bias.double())

    def share_kept(outputs: Tensor) -> float:
        """1 where all of the update is in the outputs, whatever else rounding did to them."""
        return float(((outputs.double() - plain) * update).sum() / update.square().sum())

    if factors is not None:  # which multiply all but the bias
        bias = 0 if base.bias is None else base.bias.double()
        ours = (ours.double() - bias) / factors + bias

    # The mean of 262,144 numbers: chance leaves 3 % of an update that is a fortieth of their rounding.
    assert share_kept(ours) == pytest.approx(1, abs=0.06)
    assert share_kept(theirs) < {1e-4: 0.5, 1e-3: 0.98, 1e-2: 1.01}[size]


def test_with_dropout_magnitudes_far_below_the_rounding_of_bfloat16_are_in_the_outputs() -> None:
    """C52: what factors near 1 add is summed with what the base gives before that is rounded."""
    generator = torch.Generator().manual_seed(0)
    base = _without_bias(torch.randn(1024, 512, generator=generator).bfloat16() / 512**0.5, torch.empty(0))
    x, near_1 = torch.randn(256, 512, generator=generator).bfloat16(), torch.randn(1024, generator=generator) * 1e-3
    dropped, nothing = x * 2 * (torch.rand(x.shape, generator=generator) < 0.5), torch.zeros(1024, 8)
    layer = Adapted(base, torch.zeros(8, 512), nothing, 1.5, 1 + near_1)
    (ours,) = adapted_products(x, [layer], torch.bfloat16, dropped)
    weight = unpacked(base).double().T
    added = near_1 * (dropped.double() @ weight)
    share_kept = ((ours.double() - x.double() @ weight) * added).sum() / added.square().sum()
    assert float(share_kept) == pytest.approx(1, abs=0.06)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_over_weights_in_4_bits_it_is_pefts_forward_and_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, dora: bool
) -> None:
    """As near to float32 where products are computed in bfloat16; and layers that read one input are one function."""
    name = str(dtype).removeprefix("torch.")
    config = wide_config(tmp_path, method="qlora", model__dtype=name, lora__use_dora=dora)
    model = build_model(plan_run(config)).loaded.model.train()
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_B["default"].weight.data.normal_(std=0.05, generator=generator)
    ids = torch.randint(3, 290, (2, 9), generator=generator)
    calls: list[int] = []

    def counted(x: Tensor, layers: Any, *rest: Any) -> tuple[Tensor, ...]:
        calls.append(len(layers))
        return adapted_products(x, layers, *rest)

    monkeypatch.setattr(lora_linear, "adapted_products", counted)
    found = [_results(model, ids, dtype)]
    assert calls == [3, 1, 2, 1] * 3
    monkeypatch.setattr(Together, "is_plain", False)
    found.insert(0, _results(model, ids, dtype))
    exact = found[0] if dtype == torch.float32 else _results(_in_float32(model), ids, torch.float32)
    theirs, ours = (
        sum(float((one - right).norm() / right.norm()) for one, right in zip(results, exact, strict=True)) / len(exact)
        for results in found
    )
    # Which way a number is rounded is chance: a tenth more on the mean of 43 tensors is within it.
    assert ours <= (1e-4 if dtype == torch.float32 else 1.1 * theirs)


def _results(model: nn.Module, ids: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Logits and gradients."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    logits.float().square().mean().backward()
    return [logits.detach().float(), *(p.grad for p in model.parameters() if p.grad is not None)]


def _in_float32(model: nn.Module) -> nn.Module:
    """The same model, which computes in float32 with what its weights in 4 bits stand for."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    return nn.Module.float(model)  # that of transformers refuses it

"""DoRA by norms from A and B against peft's own forward, which makes the update for them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from loraft.kernels.low_rank.dora import FactoredDora, norms_from_factors, row_lengths, row_norms
from tests.tiny import tiny_model

INPUTS, OUTPUTS = 96, 64


def test_norms_by_hand() -> None:
    """Rows (3, 4) and (0, 0), of which the second gets (6, 8); and one that an update takes away: 10 √ε."""
    weight, a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]), torch.tensor([[3.0, 4.0]])
    norms = row_norms(weight, row_lengths(weight).square(), a, torch.tensor([[0.0], [1.0], [-1.0]]), 2.0)
    assert norms.tolist() == [5.0, 10.0, pytest.approx(10 * torch.finfo(torch.float32).eps ** 0.5)]
    assert row_norms(torch.zeros(2, 2), torch.zeros(2), a, torch.zeros(2, 1), 2.0).min() > 0, "0 divides nothing"


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_pefts_forward_and_backward(model_type: str, dropout: float) -> None:
    """With biases and without, with transposed weights, and where dropout has the base's output computed once more."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, lora_dropout=dropout, use_dora=True,
        fan_in_fan_out=model_type == "gpt2",
    )  # fmt: skip
    plain = get_peft_model(tiny_model(model_type), config)
    ours = copy.deepcopy(plain)
    norms_from_factors(ours, "default")
    assert any(isinstance(module, FactoredDora) for module in ours.modules())
    assert plain.state_dict().keys() == ours.state_dict().keys()
    ids, results = torch.randint(3, 300, (2, 9)), []
    with torch.inference_mode():
        ours(input_ids=ids)  # what a first look keeps is of use in training
    for model in (plain.train(), ours.train()):
        torch.manual_seed(1)  # for the dropouts
        logits = model(input_ids=ids).logits
        logits.float().square().mean().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    # float32 sums in another order, through three layers to logits of about 4.
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)


def layers(dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """A linear module with magnitudes, peft's form, and what its forward takes."""
    torch.manual_seed(0)
    base, a, b = nn.Linear(INPUTS, OUTPUTS), nn.Linear(INPUTS, 4, bias=False), nn.Linear(4, OUTPUTS, bias=False)
    made: Any = DoraLinearLayer(fan_in_fan_out=False)
    base.to(dtype).requires_grad_(False)
    made.base_squared = None
    made.update_layer(base_layer=base, lora_A=a.weight, lora_B=torch.zeros_like(b.weight), scaling=0.5)
    return made, {"lora_A": a, "lora_B": b, "scaling": 0.5, "base_layer": base}


def test_in_bfloat16_it_is_closer_to_what_is_meant_than_rounded_norms() -> None:
    made, given = layers(torch.bfloat16)
    x = torch.randn(400, INPUTS).bfloat16()
    base, a, b = (given[name].weight.detach().double() for name in ("base_layer", "lora_A", "lora_B"))
    moved = base + 0.5 * b @ a
    wanted = x.double() @ (made.weight.detach().double() / moved.norm(dim=1))[:, None].mul(moved).T
    errors, of_rows = [], []
    for form in (DoraLinearLayer, FactoredDora):
        made.__class__ = form
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            plain = given["base_layer"](x)
            given_bias = given["base_layer"].bias.double()
            gave = (plain + made(x, **given, base_result=plain)).bfloat16()  # as peft's layer gives it
            error = gave - wanted - given_bias
            errors.append(float(error.norm() / wanted.norm()))
            of_rows.append(float(((error * wanted).sum(0) / wanted.square().sum(0)).abs().mean()))
    print(f"errors of outputs {errors}, and what is common to a row's {of_rows}: by PEFT, by A and B")
    # 0.0031 and 0.0027, of which the rounding of the products and of the sum is most.
    assert errors[1] < 0.93 * errors[0]
    assert of_rows[1] < 0.5 * of_rows[0], "a norm that is rounded is off for all outputs of a row"


class Largest(TorchDispatchMode):
    """Counts the numbers of the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        seen = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in seen:
            self.numbers = max(self.numbers, made.numel())
        return made


def test_no_tensor_as_large_as_the_weight_is_made() -> None:
    made, given = layers(torch.float32)
    x, largest = torch.randn(3, INPUTS), {}
    for form in (DoraLinearLayer, FactoredDora):
        made.__class__ = form
        with Largest() as counted:
            made(x, **given, base_result=given["base_layer"](x)).sum().backward()
        largest[form] = counted.numbers
    assert largest[DoraLinearLayer] == INPUTS**2
    assert largest[FactoredDora] == 4 * INPUTS
    assert math.prod(given["base_layer"].weight.shape) > 4 * INPUTS


def test_a_row_that_an_update_all_but_takes_away_has_no_norm_near_zero() -> None:
    """What is left is rounding, by which magnitudes would be divided."""
    weight = torch.randn(200, INPUTS)
    b, a = torch.linalg.qr(weight)
    norms = row_norms(weight, row_lengths(weight).square(), a, -b * (1 - 1e-6), 1.0)
    assert (norms >= 3e-4 * weight.norm(dim=1)).all()


def test_norms_are_kept_where_nothing_is_trained_until_a_factor_is_another() -> None:
    made, given = layers(torch.float32)
    made.__class__ = FactoredDora
    x = torch.randn(3, INPUTS)
    made.eval()(x, **given, base_result=given["base_layer"](x))
    assert made.kept_norms is None, "in a run weights change in ways that no version counts"
    for name in ("lora_A", "lora_B"):
        given[name].requires_grad_(False)

    def output() -> Tensor:
        with torch.no_grad():
            result: Tensor = made(x, **given, base_result=given["base_layer"](x))
            return result

    before, kept = output(), made
    assert torch.equal(output(), before)
    with Largest() as counted:
        output()
    assert counted.numbers == 3 * OUTPUTS, "A is not multiplied with the weight again"
    for change in (lambda: given["lora_B"].weight.mul_(2), lambda: given["lora_A"].weight.add_(1)):
        with torch.no_grad():
            change()
        now = output()
        assert torch.equal(now, FactoredDora.forward(kept.train(), x, **given, base_result=given["base_layer"](x)))
        kept.eval()
        assert not torch.equal(now, before)

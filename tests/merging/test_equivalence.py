"""How far a merged model is from the adapted one, by hand, and where it is too far."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from loraft.errors import VerificationError
from loraft.merging.calibration_text import Rows
from loraft.merging.equivalence import OutputDifference, Verified, check_equivalence, difference, kl_divergence


def test_kl_of_two_coins() -> None:
    """KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4 log 3/2 + 1/4 log 1/2."""
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_divergence(p, q).item() == pytest.approx(by_hand, abs=1e-8)
    assert kl_divergence(p + 7, q - 3).item() == pytest.approx(by_hand, abs=1e-7), "logits may be moved"
    assert kl_divergence(p, p).item() == 0


def test_a_difference_is_over_all_positions_of_all_texts() -> None:
    first = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0]])]
    second = [torch.tensor([[1.0, 0.0], [0.5, 0.0]]), torch.tensor([[2.0, 0.25]])]
    found = difference(first, second)
    kl = sum(float(kl_divergence(p, q).sum()) for p, q in zip(first, second, strict=True)) / 3
    assert (found.max_abs, found.top1_agreement, found.positions) == (1.0, 2 / 3, 3)
    assert found.kl == pytest.approx(kl)


def test_long_texts_are_compared_a_part_at_a_time() -> None:
    p, q = torch.randn(300, 11), torch.randn(300, 11)
    found = difference([p], [q])
    assert found.max_abs == float((p - q).abs().max())
    assert found.kl == pytest.approx(float(kl_divergence(p, q).mean()))
    assert found.positions == 300


def test_outputs_that_are_not_finite_have_no_difference() -> None:
    broken = torch.tensor([[0.0, torch.nan]])
    assert math.isnan(difference([torch.zeros(1, 2)], [broken]).max_abs)
    with pytest.raises(ValueError, match="no positions"):
        difference([], [])
    with pytest.raises(ValueError, match="no difference"):
        difference([torch.zeros(1, 2)], [torch.zeros(1, 3)])


EFFECT = OutputDifference(max_abs=2.0, kl=0.5, top1_agreement=0.8, positions=256)
GOOD = OutputDifference(max_abs=1e-4, kl=1e-9, top1_agreement=1.0, positions=256)


def warnings(
    merged: OutputDifference = GOOD,
    base: OutputDifference = EFFECT,
    *,
    is_float32: bool = False,
    is_as_trained: bool = True,
    others: tuple[str, ...] = (),
) -> tuple[str, ...]:
    found = Verified(merged, base, Rows((), "text"), "logits", is_float32, 30, others)
    return check_equivalence(found, is_as_trained=is_as_trained)


def merged(**values: float) -> OutputDifference:
    return replace(GOOD, **values)


def test_a_good_merge_gets_no_word() -> None:
    assert warnings(is_float32=True) == ()
    assert warnings(merged(kl=0.05)) == ()


def test_c27_float32_logits_that_differ_by_more_than_a_thousandth_fail() -> None:
    with pytest.raises(VerificationError, match=r"differ from the adapted one's by up to 0\.0011"):
        warnings(merged(max_abs=1.1e-3), is_float32=True)
    assert warnings(merged(max_abs=1.1e-3)) == ()
    assert warnings(merged(max_abs=1.1e-3), is_float32=True, is_as_trained=False) == ()


def test_c25_a_merge_that_loses_more_than_a_tenth_is_warned_of_with_the_remedy() -> None:
    (warning,) = warnings(merged(kl=0.06))
    assert "lost 12 % of the adapter's effect" in warning
    assert "`dtype='float32'`" in warning
    (warning,) = warnings(merged(kl=0.4, max_abs=1.0), is_float32=True, is_as_trained=False)
    assert "leave `base` out" in warning


def test_c25_a_merge_that_loses_more_than_it_keeps_fails() -> None:
    with pytest.raises(VerificationError, match=r"lost more than it kept: .* is 0\.6, .* is 0\.5") as caught:
        warnings(merged(kl=0.6))
    assert caught.value.exit_code == 3


def test_an_adapter_without_an_effect_is_said_and_does_not_fail() -> None:
    nothing = (replace(GOOD, kl=1e-9), replace(EFFECT, kl=0.0, max_abs=0.0))
    assert "changes nothing" in warnings(*nothing, is_float32=True)[0]


def test_an_adapter_that_moves_outputs_is_never_said_to_change_nothing() -> None:
    little = (replace(GOOD, max_abs=2e-5, kl=1e-9), replace(EFFECT, kl=5e-7, max_abs=0.00321))
    (warning,) = warnings(*little, is_float32=True)
    assert "changes nothing" not in warning
    for measured in ("0.00321", "5e-07", "2e-05"):
        assert measured in warning


def test_outputs_that_are_not_finite_fail() -> None:
    with pytest.raises(VerificationError, match="NaN or infinity"):
        warnings(merged(max_abs=math.nan, kl=math.nan), is_float32=True)


def test_c25_a_tensor_that_is_another_fails_however_little_the_outputs_tell_of_it() -> None:
    with pytest.raises(VerificationError, match=r"other numbers than the adapted one in 2 tensors of 30: a\.weight, b"):
        warnings(others=("a.weight", "b"))
    with pytest.raises(VerificationError, match=r"in one tensor of 30: a\.weight; nothing was written"):
        warnings(others=("a.weight",))

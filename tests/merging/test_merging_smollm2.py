"""Merging a real model: the limits of C25, C26 and C27 on SmolLM2-135M-Instruct, on 256 positions.

Adapters are moved at random and not trained, to an effect of the size that training has: seconds instead of minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraft import api
from loraft.config.sections import QuantizationSection
from loraft.errors import VerificationError
from loraft.merging.merge_report import MergeReport
from tests.adapters.setting import IDS
from tests.merging.merging import own_adapter

pytestmark = pytest.mark.slow

SMOLLM2 = "builtin:smollm2-135m-instruct"
POSITIONS = 256


def told(report: MergeReport) -> MergeReport:
    print(
        f"\n{report.base} {report.dtype}: max |Δlogit| {report.max_abs_logit_difference:.3g}, KL(adapted ‖ merged) "
        f"{report.kl_adapted_merged:.3g}, KL(adapted ‖ base) {report.kl_adapted_base:.3g}, "
        f"top-1 {report.top1_agreement:.4f}"
    )
    return report


def test_c27_float32_is_exact_and_bfloat16_close(tmp_path: Path) -> None:
    """C25: what bfloat16 loses is said where it is over a tenth of the adapter's effect."""
    own_adapter(tmp_path / "run/adapter", Path(SMOLLM2), dtype=torch.bfloat16, amount=0.02)
    exact = told(api.merge(str(tmp_path / "run"), dtype="float32"))
    assert exact.positions == POSITIONS
    assert exact.max_abs_logit_difference is not None
    assert exact.max_abs_logit_difference <= 1e-3
    assert exact.top1_agreement == 1.0
    close = told(api.merge(str(tmp_path / "run"), dtype="bfloat16", overwrite=True))
    assert close.kl_adapted_merged is not None
    assert close.kl_adapted_base is not None
    assert close.kl_adapted_merged <= 5e-3
    said = any("of the adapter's effect" in warning for warning in close.warnings)
    assert said == (close.kl_adapted_merged > close.kl_adapted_base / 10)


def test_c26_a_4_bit_adapter_on_the_dequantized_base(tmp_path: Path) -> None:
    """C12 too: the 4-bit model answers before it is merged, in the same process."""
    trained_in, stored = torch.bfloat16, QuantizationSection()
    adapted = own_adapter(
        tmp_path / "run/adapter", Path(SMOLLM2), "qlora", dtype=trained_in, quantization=stored, amount=0.02
    )
    with torch.no_grad(), torch.autocast("cpu", dtype=trained_in):
        adapted.model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False)
    del adapted
    for dtype, limit in (("float32", 2e-3), ("bfloat16", 1e-2)):
        report = told(api.merge(str(tmp_path / "run"), dtype=dtype, overwrite=True))
        assert report.base == "dequantized"
        assert report.kl_adapted_merged is not None
        assert report.kl_adapted_merged <= limit
    with pytest.raises(VerificationError, match=r"lost more than it kept: KL\(adapted ‖ merged\) is 0\.[2-9]"):
        api.merge(str(tmp_path / "run"), tmp_path / "other", dtype="float32", base="original")

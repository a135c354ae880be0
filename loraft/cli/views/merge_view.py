"""What `merge --json` prints, as a person reads it: what was written, and what proves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType

from loraft.cli.text_tables import facts

WIDE = 30
"""The label column, so that both sections line up."""


def merge_view(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The merged model, and how far it is from the adapted one, where that was measured."""
    merged = {
        "out": report["out"],
        "base model": report["base_model"],
        "base": f"{report['base']}: {report['why_this_base']}",
        "adapters": [f"{each['name']} × {each['weight']:g}" for each in report["adapters"]],
        "changed tensors": report["changed_tensors"],
        **({"untied": report["untied"]} if report["untied"] else {}),
        "dtype": report["dtype"],
        "weights_bytes": report["weights_bytes"],
        "merged in": f"{report['merge_seconds']:.1f} s",
    }
    yield facts("merged", merged, label_width=WIDE)
    if report["verified"]:
        measured = {
            "positions": f"{report['positions']:,} of {report['measured_on']}",
            f"largest difference of {report['compared']}": f"{report['max_abs_logit_difference']:.3g}",
            "KL(adapted ‖ merged)": f"{report['kl_adapted_merged']:.3g}",
            "KL(adapted ‖ base)": f"{report['kl_adapted_base']:.3g}",
            f"same likeliest {'class' if report.get('labels') else 'token'}": (
                f"{100 * (report['top1_agreement'] or 0):.2f} %"
            ),
        }
        yield facts("verified", measured, label_width=WIDE)

"""What `merge --json` and `export --json` print, as a person reads it: what was written, and what it is good for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from loraft.cli.text_tables import Document, facts

WIDE = 30
"""The label column, so that both sections line up."""


def merge_view(report: Document) -> Iterator[RenderableType]:
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
            **({"same tensors": f"all {tensors:,}"} if (tensors := report.get("compared_tensors")) else {}),
        }
        yield facts("verified", measured, label_width=WIDE)


def export_view(report: Document) -> Iterator[RenderableType]:
    """The file, and the command that uses it."""
    folded = [f"{each['name']} × {each['weight']:g}" for each in report["adapters"]]
    types = ", ".join(f"{count} in {kind}" for kind, count in report["types"].items())
    written = {
        "out": report["out"],
        "holds": report["holds"],
        "base model": report["base_model"],
        **({"adapters": folded} if folded else {}),
        "architecture": f"{report['architecture']}, as llama.cpp calls it",
        "tensors": types,
        "file_bytes": report["file_bytes"],
        **({"modelfile": report["modelfile"]} if report["modelfile"] else {}),
        "written in": f"{report['seconds']:.1f} s",
    }
    yield facts("exported", written)
    yield Text(f"Try it:  {_command(report)}")


def _command(report: Document) -> str:
    if report["holds"] == "adapter":
        return f"llama-cli -m BASE.gguf --lora {report['out']}"
    if report["modelfile"]:
        return f"ollama create {Path(report['out']).stem} -f {report['modelfile']}"
    return f"llama-cli -m {report['out']}"

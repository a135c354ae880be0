"""What `export --json` prints, as a person reads it: what was written, and how it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from loraft.cli.text_tables import facts


def export_view(report: Mapping[str, Any]) -> Iterator[RenderableType]:
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


def _command(report: Mapping[str, Any]) -> str:
    if report["holds"] == "adapter":
        return f"llama-cli -m BASE.gguf --lora {report['out']}"
    if report["modelfile"]:
        return f"ollama create {Path(report['out']).stem} -f {report['modelfile']}"
    return f"llama-cli -m {report['out']}"

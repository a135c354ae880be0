"""The Python API: one short function a verb.

`preview` shows rows as the model will see them, `check` tells what `train` would do, and `train` does it. `load`
opens what came of it once, to be asked many times; `generate` answers one prompt as it comes, `complete` several,
`answer_file` a file of them, `compare` beside the base, `open_chat` in a conversation. `predict` and `predict_file`
tell the classes of texts. `evaluate` measures what was trained, `merge` folds it into its base, `export` writes it for
llama.cpp, and `inspect_layers` looks into it; `inspect_activations` and `inspect_gradients` tell what goes on in it
while it reads and learns. `report` tells whether a run did any good. `compare_methods` measures what each method of
training costs. `push` puts what was trained on the Hub. `convert` makes safetensors of pickled weights. Each takes
plain values and gives plain values back; what there is to tell goes to an observer, and nothing is printed.

A verb is imported when it is first asked for, so that looking at rows costs none of the libraries that training
needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraft.api.answers import Answering, OpenModel, answer_file, compare, complete, generate, load, open_chat
    from loraft.api.classes import OpenClassifier, predict, predict_file
    from loraft.api.exports import export
    from loraft.api.inside import inspect_activations, inspect_gradients
    from loraft.api.runs import check, evaluate, merge, train
    from loraft.api.to_hub import push
    from loraft.api.tuning import tune
    from loraft.baselines.compare_methods import compare_methods
    from loraft.baselines.fit_memory import fit_memory
    from loraft.baselines.train_baseline import train_baseline
    from loraft.converting.convert_model import convert
    from loraft.inspection.layers_report import inspect_layers
    from loraft.inspection.row_preview import preview
    from loraft.reporting.report_run import report

__all__ = [
    "Answering", "OpenClassifier", "OpenModel", "answer_file", "check", "compare", "compare_methods", "complete",
    "convert", "evaluate", "export", "fit_memory", "generate", "inspect_activations", "inspect_gradients",
    "inspect_layers", "load", "merge", "open_chat", "predict", "predict_file", "preview", "push", "report", "train",
    "train_baseline", "tune",
]  # fmt: skip

HOMES = {
    name: module
    for module, names in {
        "api.answers": "Answering OpenModel answer_file compare complete generate load open_chat",
        "api.classes": "OpenClassifier predict predict_file",
        "api.exports": "export",
        "api.inside": "inspect_activations inspect_gradients",
        "api.runs": "check evaluate merge train",
        "api.to_hub": "push",
        "api.tuning": "tune",
        "baselines.compare_methods": "compare_methods",
        "baselines.fit_memory": "fit_memory",
        "baselines.train_baseline": "train_baseline",
        "converting.convert_model": "convert",
        "inspection.layers_report": "inspect_layers",
        "inspection.row_preview": "preview",
        "reporting.report_run": "report",
    }.items()
    for name in names.split()
}
"""The module of each name."""


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"loraft.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""loraft fine-tunes Hugging Face models with LoRA and QLoRA from one YAML file.

The public names are resolved on first use, so that `import loraft` and reading a config need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from loraft.version import __version__

if TYPE_CHECKING:
    from loraft.api import (
        answer_file,
        check,
        compare,
        compare_methods,
        complete,
        convert,
        evaluate,
        export,
        fit_memory,
        generate,
        inspect_activations,
        inspect_gradients,
        inspect_layers,
        load,
        merge,
        open_chat,
        predict,
        predict_file,
        preview,
        push,
        report,
        train,
        train_baseline,
        tune,
    )
    from loraft.config.config_file import load_config
    from loraft.config.schema import RunConfig
    from loraft.errors import Interrupted, InvalidInputError, LoraftError, RunError
    from loraft.inference.requests import GenerationRequest, ModelRequest
    from loraft.models.sources import resolve

__all__ = [
    "GenerationRequest", "Interrupted", "InvalidInputError", "LoraftError", "ModelRequest", "RunConfig", "RunError",
    "__version__", "answer_file", "check", "compare", "compare_methods", "complete", "convert", "evaluate", "export",
    "fit_memory", "generate", "inspect_activations", "inspect_gradients", "inspect_layers", "load", "load_config",
    "merge", "open_chat", "predict", "predict_file", "preview", "push", "report", "resolve", "train", "train_baseline",
    "tune",
]  # fmt: skip

HOMES = {
    "RunConfig": "loraft.config.schema",
    "load_config": "loraft.config.config_file",
    "resolve": "loraft.models.sources",
    **dict.fromkeys(("GenerationRequest", "ModelRequest"), "loraft.inference.requests"),
    **dict.fromkeys(("Interrupted", "InvalidInputError", "LoraftError", "RunError"), "loraft.errors"),
}
"""Where public names are that are no verbs; those are in `loraft.api`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(HOMES.get(name, "loraft.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

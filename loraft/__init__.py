"""loraft fine-tunes Hugging Face models with LoRA and QLoRA from one YAML file.

The public names are resolved on first use, so that `import loraft` and reading a config need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from loraft.version import __version__

if TYPE_CHECKING:
    from loraft.api import check, evaluate, generate, merge, predict, train
    from loraft.config.config_file import load_config
    from loraft.config.schema import RunConfig

__all__ = ["RunConfig", "__version__", "check", "evaluate", "generate", "load_config", "merge", "predict", "train"]

HOMES = {
    "RunConfig": "loraft.config.schema",
    "check": "loraft.api",
    "evaluate": "loraft.api",
    "generate": "loraft.api",
    "load_config": "loraft.config.config_file",
    "merge": "loraft.api",
    "predict": "loraft.api",
    "train": "loraft.api",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

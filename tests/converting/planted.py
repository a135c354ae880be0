"""Pickles that would make a file if they were opened as pickles are, and models whose weights are pickled."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.tiny import save_tiny


class Planted:
    """What a pickle of this calls when it is opened: it makes the file `RAN`."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return Path.touch, (self.ran,)


def planted(ran: Path) -> bytes:
    """A pickle that makes the file `ran` where it is opened by `pickle`."""
    return pickle.dumps(Planted(ran))


def save_pickled(folder: Path, model_type: str = "llama", **overrides: Any) -> dict[str, torch.Tensor]:
    """A tiny model whose weights are in pytorch_model.bin alone; its tensors, those that are tied to others too."""
    save_tiny(folder, model_type, **overrides)
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return tensors


def pickled_copy(source: Path, folder: Path) -> Path:
    """A model as it is, but for its weights, which are pickled."""
    shutil.copytree(source, folder)
    for file in folder.glob("*model.safetensors"):
        name = {"model": "pytorch_model", "adapter_model": "adapter_model"}[file.stem]
        torch.save(load_file(file), folder / f"{name}.bin")
        file.unlink()
    return folder

"""What PEFT calls things: the files of an adapter, the tensors in them, and the adapters in a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from loraft.errors import AdapterError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>A|B|magnitude_vector)"
    r"(?:\.(?!weight$)[\w-]+)?(?:\.weight)?"
)
"""A tensor of an update; some tools leave the adapter's name in it."""
Part = Literal["A", "B", "magnitude", "copy", "whole"]
PARTS: Mapping[str, Part] = MappingProxyType({"A": "A", "B": "B", "magnitude_vector": "magnitude"})
COPY = re.compile(r"(?P<module>.+)\.base_layer\.(?P<end>weight|bias)")
"""A tensor of the base's own, which peft saves where a head or an embedding is adapted."""
WRAPPERS = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")

ADAPTER = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEFAULT = "default"
"""What peft calls an adapter that nobody names."""
TAKEN = ("base", "none")
"""What the base without an adapter is called."""


@dataclass(frozen=True)
class AdapterTensor:
    """What a tensor of an adapter's file is.

    Attributes:
        part: `A`, `B` and `magnitude` are of the update of a module, a `copy` is the base's own weight, and `whole` is
            what was trained in its place.
        module: The module of the base that it belongs to.
        name: What the base calls the tensor; of an update the weight that it changes.
        of_embedding: Whether it is a factor of an embedding, whose weight is stored `[in, out]`.
    """

    part: Part
    module: str
    name: str
    of_embedding: bool = False


def parse_key(key: str) -> AdapterTensor:
    """What a tensor is, told from its key in an adapter's file."""
    key = key.removeprefix(PREFIX)
    if factor := FACTOR.fullmatch(key):
        module = factor["module"]
        return AdapterTensor(PARTS[factor["part"]], module, f"{module}.weight", bool(factor["embedding"]))
    if copy := COPY.fullmatch(key):
        return AdapterTensor("copy", copy["module"], f"{copy['module']}.{copy['end']}")
    name = WRAPPERS.sub("", key)
    return AdapterTensor("whole", name.rpartition(".")[0], name)


def weights_file(folder: Path) -> Path:
    """The file of an adapter's weights.

    Raises:
        AdapterError: It is missing; pickled weights are named, and not opened.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickled = sorted(file.name for file in folder.glob("adapter_model.*"))
        remedy = f"{pickled[0]} is not read: pickled weights can run code." if pickled else "The folder is incomplete."
        raise AdapterError(f"there is no {ADAPTER_WEIGHTS}", where=str(folder), remedy=remedy)
    return path


def check_adapter_name(name: str) -> None:
    """Refuse a name that could mean a path, or the base.

    Raises:
        AdapterError: If it is not made of 1 to 64 letters, digits, `_` and `-`, or is `base` or `none`.
    """
    if not ADAPTER.fullmatch(name):
        raise AdapterError(
            f"{name!r} cannot be an adapter's name",
            parameter="adapters",
            remedy="Use 1 to 64 letters, digits, underscores and hyphens.",
        )
    if name in TAKEN:
        message = f"{name!r} means the base without an adapter, and cannot be an adapter's name"
        raise AdapterError(message, parameter="adapters", remedy="Give it another one: `adapters=['NAME=DIR']`.")


def in_peft(name: str) -> str:
    """What peft calls the adapter `name`: nothing that torch knows, and no part of the path of any module.

    peft keeps adapters in dictionaries of torch, where `type` or `keys` would hide a method, and tells one adapter's
    tensors from another's by looking for names in their paths: one called `model` would be found in all of them.
    """
    return name if name == DEFAULT else f"adapter-{name}"

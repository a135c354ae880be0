"""The factors of an adapter as its file has them: A, B, magnitude and scale of each module, read and not judged.

Unlike `adapter_files`, it takes adapters of any task, of other tools, and damaged ones: values that are not finite are
handed on, for whoever looks at an adapter wants to see them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraft.adapters.peft_names import ADAPTER_CONFIG, parse_key, weights_file
from loraft.adapters.rank_patterns import values_for
from loraft.errors import AdapterError
from loraft.io.atomic import read_json


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """The update of one module: ΔW = scale · B A, `[out, in]`.

    Attributes:
        a: `[r, in]`, as stored.
        b: `[out, r]`, as stored.
        scale: alpha / r, or alpha / √r with rsLoRA.
        magnitude: `[out]`, of DoRA: the length of each row of W + ΔW is replaced by it.
        of_embedding: Whether the module is an embedding: its weight `[rows, width]` is [in, out].
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    of_embedding: bool = False

    @property
    def rank(self) -> int:
        """R."""
        return int(self.a.shape[0])


@dataclass(frozen=True, eq=False)
class AdapterReader:
    """An adapter whose file is open.

    Attributes:
        folder: Where it lies.
        declared: adapter_config.json.
        keys: The tensors of each adapted module: what they are, and their keys in the file.
        saved: The tensors of modules that are trained whole (`modules_to_save`), by full name: their sizes.
        unread: Tensors that are neither.
        dtypes: How many numbers the file holds in each dtype.
        file: The open file.
    """

    folder: Path
    declared: Mapping[str, Any]
    keys: Mapping[str, Mapping[str, str]]
    saved: Mapping[str, tuple[int, ...]]
    unread: tuple[str, ...]
    dtypes: Mapping[str, int]
    file: Any

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapted module, from the sizes of its tensors."""
        return {name: self.file.get_slice(parts["A"]).get_shape()[0] for name, parts in self.keys.items()}

    @cached_property
    def _alphas(self) -> Mapping[str, float]:
        patterns, alpha = self.declared.get("alpha_pattern") or {}, self.declared.get("lora_alpha", 8)
        return values_for(self.keys, patterns, alpha, where=str(self.folder / ADAPTER_CONFIG), key="alpha_pattern")

    def factors(self, module: str) -> LoraFactors:
        """The factors of a module, read now."""
        parts = self.keys[module]
        a, b = self.file.get_tensor(parts["A"]), self.file.get_tensor(parts["B"])
        magnitude = self.file.get_tensor(parts["magnitude"]) if "magnitude" in parts else None
        alpha = self._alphas[module]
        scale = alpha / math.sqrt(a.shape[0]) if self.declared.get("use_rslora") else alpha / a.shape[0]
        return LoraFactors(a, b, scale, magnitude, parse_key(parts["A"]).of_embedding)

    def saved_tensor(self, name: str) -> Tensor:
        """A tensor that was trained whole, read now."""
        keys = (key for key in self.file.keys() if (of := parse_key(key)).part == "whole" and of.name == name)  # noqa: SIM118
        read: Tensor = self.file.get_tensor(next(keys))
        return read


@contextmanager
def open_adapter(folder: Path) -> Iterator[AdapterReader]:
    """Open an adapter to look at it.

    Raises:
        AdapterError: A file is missing or unreadable, it is no LoRA adapter, or half of a module's tensors are absent.
    """
    declared = read_json(folder / ADAPTER_CONFIG)
    _refuse_other_kinds(declared, folder)
    path = weights_file(folder)
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"it cannot be read: {error}", where=str(path)) from error
    with file as opened:
        yield _listed(folder, declared, opened, path)


def _refuse_other_kinds(declared: Mapping[str, object], folder: Path) -> None:
    where = str(folder / ADAPTER_CONFIG)
    if declared.get("peft_type") != "LORA":
        kind = declared.get("peft_type")
        raise AdapterError(f"it is of the kind {kind}, and loraft looks into LoRA", where=where, key="peft_type")
    patterns = declared.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_is_number(value) for value in patterns.values()):
        raise AdapterError(f"{patterns!r} does not give numbers", where=where, key="alpha_pattern")
    if not _is_number(alpha := declared.get("lora_alpha", 8)):
        raise AdapterError(f"{alpha!r} is no number", where=where, key="lora_alpha")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(folder: Path, declared: Mapping[str, Any], file: Any, path: Path) -> AdapterReader:
    keys: dict[str, dict[str, str]] = {}
    saved: dict[str, tuple[int, ...]] = {}
    unread: list[str] = []
    dtypes: dict[str, int] = {}
    for key in file.keys():  # noqa: SIM118 (a file is no mapping)
        part = file.get_slice(key)
        shape = tuple(part.get_shape())
        dtypes[part.get_dtype()] = dtypes.get(part.get_dtype(), 0) + math.prod(shape)
        tensor = parse_key(key)
        if tensor.part == "whole":
            saved[tensor.name] = shape
        elif tensor.part == "magnitude" or (tensor.part in ("A", "B") and len(shape) == 2):
            keys.setdefault(tensor.module, {})[tensor.part] = key
        elif tensor.part != "copy":
            unread.append(key)
    halves = sorted(name for name, parts in keys.items() if not {"A", "B"} <= parts.keys())
    if halves:
        missing = "A" if "A" not in keys[halves[0]] else "B"
        raise AdapterError(f"{halves[0]} and {len(halves) - 1} more have no {missing}", where=str(path))
    for name, parts in keys.items():
        a, b = (file.get_slice(parts[part]).get_shape() for part in ("A", "B"))
        if a[0] != b[1] or not a[0]:
            raise AdapterError(f"the A of {name} is {a} and its B {b}: they make no product", where=str(path))
        if "magnitude" in parts and math.prod(m := file.get_slice(parts["magnitude"]).get_shape()) != b[0]:
            raise AdapterError(f"the magnitude of {name} is {m} and its B {b}", where=str(path))
    return AdapterReader(folder, declared, keys, saved, tuple(unread), dtypes, file)

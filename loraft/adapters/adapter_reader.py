"""An adapter's file looked at: A, B, magnitude and scale of each module, read when asked for and not judged.

Unlike `adapter_files`, it takes adapters of any task, of other tools, and damaged ones: values that are not finite are
handed on, for whoever looks at an adapter wants to see them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraft.adapters.adapter_config import ADAPTER_CONFIG, values_for
from loraft.adapters.lora_factors import (
    LoraFactors,
    parameters_in,
    parse_key,
    scale_of,
    token_rows,
    weights_file,
)
from loraft.errors import AdapterError
from loraft.io.atomic import read_json


@dataclass(frozen=True, eq=False)
class AdapterReader:
    """An adapter of whose file the header is known.

    Attributes:
        folder: Where it lies.
        declared: adapter_config.json.
        shapes: The sizes of every tensor, by its key in the file.
        keys: The tensors of each adapted module: what they are, and their keys in the file.
        saved: The keys of tensors that are trained whole (`modules_to_save`, biases), by what the base calls them.
        tokens: The keys of rows that are trained by themselves (`trainable_token_indices`), by the weight that has
            them.
        unread: Tensors that are neither.
        dtypes: How many numbers the file holds in each dtype.
    """

    folder: Path
    declared: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, Mapping[str, str]]
    saved: Mapping[str, str]
    tokens: Mapping[str, str]
    unread: tuple[str, ...]
    dtypes: Mapping[str, int]

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapted module, from the sizes of its tensors."""
        sizes = {name: self.shapes[parts["A"]][0] for name, parts in self.keys.items()}
        return {name: rows // self._experts(name, rows) for name, rows in sizes.items()}

    @cached_property
    def _alphas(self) -> Mapping[str, float]:
        return self._said("alpha_pattern", self.declared.get("lora_alpha", 8))

    @cached_property
    def _ranks_said(self) -> Mapping[str, float]:
        return self._said("rank_pattern", self.declared.get("r", 8))

    def _said(self, key: str, default: float) -> Mapping[str, float]:
        """What the config says of each module, and of each parameter."""
        names = {*self.keys, *(name for place in self.keys for name in self.parameters(place))}
        return values_for(
            names, self.declared.get(key) or {}, default, where=str(self.folder / ADAPTER_CONFIG), key=key
        )

    def parameters(self, place: str) -> list[str]:
        """The parameters that factors may be of (`target_parameters`); none of a module's."""
        return parameters_in(place, self.declared.get("target_parameters") or (), self.declared.get("target_modules"))

    def _experts(self, place: str, rows: int) -> int:
        """How many experts share a parameter: peft's rank is that of each."""
        said = [int(self._ranks_said[name]) for name in self.parameters(place)]
        return next((rows // rank for rank in said if rank > 0 and rows % rank == 0), 1)

    def factors(self, module: str) -> LoraFactors:
        """The factors of a module or a parameter as stored, read now."""
        parts = self.keys[module]
        tensors = {part: self.tensor(key) for part, key in parts.items()}
        experts = self._experts(module, tensors["A"].shape[0])
        alpha = self._alphas[next(iter(self.parameters(module)), module)]
        scale = scale_of(alpha, tensors["A"].shape[0] // experts, use_rslora=bool(self.declared.get("use_rslora")))
        of_embedding = parse_key(parts["A"]).of_embedding
        return LoraFactors(tensors["A"], tensors["B"], scale, tensors.get("magnitude"), of_embedding, experts)

    def tensor(self, key: str) -> Tensor:
        """A tensor by its key in the file, read now."""
        with safe_open(weights_file(self.folder), framework="pt") as file:
            read: Tensor = file.get_tensor(key)
        return read

    def rows_of(self, name: str) -> list[int]:
        """Which rows of a weight were trained by themselves."""
        return token_rows(self.declared.get("trainable_token_indices"), name)


def open_adapter(folder: Path) -> AdapterReader:
    """Open an adapter to look at it.

    Raises:
        AdapterError: A file is missing or unreadable, it is no LoRA adapter, or half of a module's tensors are absent.
    """
    declared = read_json(folder / ADAPTER_CONFIG)
    _refuse_other_kinds(declared, str(folder / ADAPTER_CONFIG))
    path = weights_file(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, int] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a file is no mapping)
                part = file.get_slice(key)
                shapes[key] = tuple(part.get_shape())
                dtypes[part.get_dtype()] = dtypes.get(part.get_dtype(), 0) + math.prod(shapes[key])
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"it cannot be read: {error}", where=str(path)) from error
    keys: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    tokens: dict[str, str] = {}
    unread: list[str] = []
    for key, shape in shapes.items():
        tensor = parse_key(key, declared.get("bias"))
        if tensor.part == "whole":
            saved[tensor.name] = key
        elif tensor.part == "tokens":
            tokens[tensor.name] = key
        elif tensor.part in ("magnitude", "bias") or (tensor.part in ("A", "B") and len(shape) == 2):
            keys.setdefault(tensor.module, {})[tensor.part] = key
        elif tensor.part != "copy":
            unread.append(key)
    _refuse_broken(keys, shapes, str(path))
    return AdapterReader(folder, declared, shapes, keys, saved, tokens, tuple(unread), dtypes)


def _refuse_other_kinds(declared: Mapping[str, object], where: str) -> None:
    if (kind := declared.get("peft_type")) != "LORA":
        raise AdapterError(f"it is of the kind {kind}, and loraft looks into LoRA", where=where, key="peft_type")
    for key in ("alpha_pattern", "rank_pattern"):
        patterns = declared.get(key) or {}
        if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
            raise AdapterError(f"{patterns!r} does not give numbers", where=where, key=key)
    for key in ("lora_alpha", "r"):
        if not _is_number(number := declared.get(key, 8)):
            raise AdapterError(f"{number!r} is no number", where=where, key=key)
    names = declared.get("target_parameters") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AdapterError(f"{names!r} is no list of names", where=where, key="target_parameters")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_broken(keys: Mapping[str, Mapping[str, str]], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse an update of which a factor is absent, or whose factors make no product."""
    if halves := sorted(name for name, parts in keys.items() if not {"A", "B"} <= parts.keys()):
        missing = "A" if "A" not in keys[halves[0]] else "B"
        raise AdapterError(f"{halves[0]} and {len(halves) - 1} more have no {missing}", where=where)
    for name, parts in keys.items():
        a, b = (list(shapes[parts[part]]) for part in ("A", "B"))
        if a[0] != b[1] or not a[0]:
            raise AdapterError(f"the A of {name} is {a} and its B {b}: they make no product", where=where)
        if "magnitude" in parts and math.prod(m := list(shapes[parts["magnitude"]])) != b[0]:
            raise AdapterError(f"the magnitude of {name} is {m} and its B {b}", where=where)

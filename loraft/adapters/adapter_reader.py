"""An adapter's tensors, by what they are: A, B, magnitude and scale of each module, what was trained whole, rows.

`open_adapter` judges little. Unlike `read_adapter` it takes adapters of any task, of other tools, and damaged ones:
values that are not finite are handed on, for whoever looks at an adapter wants to see them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraft.adapters.adapter_config import ADAPTER_CONFIG, values_for
from loraft.adapters.lora_factors import (
    UPDATE,
    AdapterTensor,
    LoraFactors,
    parameters_in,
    parse_key,
    scale_of,
    token_rows,
    weights_file,
)
from loraft.errors import AdapterError
from loraft.figures import listed
from loraft.io.atomic import read_json
from loraft.models.safetensors_index import WORDS

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, eq=False)
class AdapterReader:
    """The contents of an adapter's folder.

    Attributes:
        folder: Where it lies.
        declared: What adapter_config.json says.
        tensors: `adapter_model.safetensors`.
        unread: The keys of tensors that are passed over: whoever looks at updates of matrices sees no other.
    """

    folder: Path
    declared: Mapping[str, Any]
    tensors: dict[str, Tensor]
    unread: tuple[str, ...]

    def _of(self, *parts: str) -> Iterator[tuple[AdapterTensor, Tensor]]:
        """The tensors of some kinds."""
        bias, read = self.declared.get("bias"), (key for key in self.tensors if key not in self.unread)
        told = ((parse_key(key, bias), self.tensors[key]) for key in read)
        return ((of, tensor) for of, tensor in told if of.part in parts)

    @cached_property
    def updates(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of the update of each adapted module or parameter: `A`, `B`, its `bias` and `magnitude`."""
        found: dict[str, dict[str, Tensor]] = {}
        for of, tensor in self._of(*UPDATE):
            found.setdefault(of.module, {})[of.part] = tensor
        return found

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """The tensors that were trained whole, by what the base calls them."""
        return {of.name: tensor for of, tensor in self._of("whole")}

    @cached_property
    def tokens(self) -> dict[str, tuple[list[int], Tensor]]:
        """The rows of a weight that were trained by themselves (`trainable_token_indices`): which, and the rows."""
        declared = self.declared.get("trainable_token_indices")
        return {of.name: (token_rows(declared, of.name), tensor) for of, tensor in self._of("tokens")}

    @property
    def dtypes(self) -> dict[str, int]:
        """How many numbers the file holds in each dtype, as safetensors writes it."""
        counts = Counter[str]()
        for tensor in self.tensors.values():
            counts[WORDS.get(tensor.dtype, str(tensor.dtype))] += tensor.numel()
        return dict(counts)

    @cached_property
    def parameters(self) -> dict[str, list[str]]:
        """The places of factors that are of parameters (`target_parameters`): which these may be, in full."""
        named, modules = self.declared.get("target_parameters") or (), self.declared.get("target_modules")
        return {place: names for place in self.updates if (names := parameters_in(place, named, modules))}

    @cached_property
    def alphas(self) -> dict[str, float]:
        """The alpha of each adapted module, and of each parameter that factors may be of.

        Raises:
            AdapterError: A pattern cannot be used.
        """
        return self._said("alpha_pattern", self.declared.get("lora_alpha", 8))

    @cached_property
    def ranks_said(self) -> dict[str, float]:
        """The rank of each likewise, as the config says."""
        return self._said("rank_pattern", self.declared.get("r", 8))

    def _said(self, key: str, default: float) -> dict[str, float]:
        """What the config says of each module, and of each parameter."""
        names = {*self.updates, *(name for several in self.parameters.values() for name in several)}
        where = str(self.folder / ADAPTER_CONFIG)
        return values_for(names, self.declared.get(key) or {}, default, where=where, key=key)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapted module or parameter, as the tensors have it."""
        rows = {place: len(parts["A"]) for place, parts in self.updates.items() if "A" in parts}
        return {place: count // self._experts(place, count) for place, count in rows.items()}

    def _experts(self, place: str, rows: int) -> int:
        """How many experts share a parameter: peft's rank is that of each."""
        said = (int(self.ranks_said[name]) for name in self.parameters.get(place, ()))
        return next((rows // rank for rank in said if 0 < rank <= rows and rows % rank == 0), 1)

    def factors(self, place: str) -> LoraFactors:
        """The factors of a module or a parameter as stored."""
        parts = self.updates[place]
        experts = self._experts(place, len(parts["A"]))
        alpha = self.alphas[next(iter(self.parameters.get(place, ())), place)]
        scale = scale_of(alpha, len(parts["A"]) // experts, use_rslora=bool(self.declared.get("use_rslora")))
        return LoraFactors(parts["A"], parts["B"], scale, parts.get("magnitude"), experts)


def open_adapter(folder: Path) -> AdapterReader:
    """Open an adapter to look at it.

    Raises:
        AdapterError: A file is missing or unreadable, it is no LoRA adapter, or half of a module's tensors are absent.
    """
    declared = read_json(folder / ADAPTER_CONFIG)
    _refuse_other_kinds(declared, str(folder / ADAPTER_CONFIG))
    tensors = floating_tensors(path := weights_file(folder))
    of_convolutions = (
        key for key, tensor in tensors.items() if parse_key(key).part in ("A", "B") and tensor.dim() != 2
    )
    opened = AdapterReader(folder, declared, tensors, tuple(of_convolutions))
    _refuse_broken(opened.updates, str(path))
    return opened


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        AdapterError: It is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"it cannot be read: {error}", where=path) from error
    return tensors


def floating_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's file.

    Raises:
        AdapterError: It is damaged, or holds numbers that no adapter is computed with.
    """
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            dtype = str(tensor.dtype).removeprefix("torch.")
            message = f"the tensor {name} holds {dtype} numbers, and adapters have floating ones"
            raise AdapterError(message, where=path, remedy="Save the adapter in float32, float16 or bfloat16.")
    return tensors


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


def _refuse_broken(updates: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
    """Refuse an update of which a factor is absent, or whose factors make no product."""
    if halves := sorted(name for name, parts in updates.items() if not {"A", "B"} <= parts.keys()):
        missing = "A" if "A" not in updates[halves[0]] else "B"
        raise AdapterError(f"there is no {missing} of {listed(halves, 1)}", where=where)
    for name, parts in updates.items():
        a, b = (list(parts[part].shape) for part in ("A", "B"))
        if a[0] != b[1] or not a[0]:
            raise AdapterError(f"the A of {name} is {a} and its B {b}: they make no product", where=where)
        if "magnitude" in parts and (m := parts["magnitude"]).numel() != b[0]:
            raise AdapterError(f"the magnitude of {name} is {list(m.shape)} and its B {b}", where=where)

"""The factors of an adapter as its file has them: A, B, magnitude and scale of each module, read and not judged.

Unlike `adapter_files`, it takes adapters of any task, of other tools, and damaged ones: values that are not finite are
handed on, for whoever looks at an adapter wants to see them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraft.adapters.adapter_config import ADAPTER_CONFIG, values_for
from loraft.errors import AdapterError
from loraft.io.atomic import read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
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
ADAPTER_NAME = "default"
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
    key = key.removeprefix("base_model.model.")
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
        remedy = "Use 1 to 64 letters, digits, underscores and hyphens."
        raise AdapterError(f"{name!r} cannot be an adapter's name", parameter="adapters", remedy=remedy)
    if name in TAKEN:
        message = f"{name!r} means the base without an adapter, and cannot be an adapter's name"
        raise AdapterError(message, parameter="adapters", remedy="Give it another one: `adapters=['NAME=DIR']`.")


def in_peft(name: str) -> str:
    """What peft calls the adapter `name`: nothing that torch knows, and no part of the path of any module.

    peft keeps adapters in dictionaries of torch, where `type` or `keys` would hide a method, and tells one adapter's
    tensors from another's by looking for names in their paths: one called `model` would be found in all of them.
    """
    return name if name == ADAPTER_NAME else f"adapter-{name}"


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """The update of one weight by one adapter: ΔW = scale · B A, `[out, in]`.

    Attributes:
        a: `[r, in]`.
        b: `[out, r]`.
        scale: s; where adapters are merged their weight is in it.
        magnitude: m `[out]`, of DoRA: the length of each row of W + ΔW is replaced by it.
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

    @property
    def changes_nothing(self) -> bool:
        """Whether it is zero, as an adapter that was never trained is."""
        zero = self.scale == 0 or not bool(self.b.any()) or not bool(self.a.any())
        return zero and self.magnitude is None

    def float(self) -> LoraFactors:
        """The same in float32."""
        magnitude = None if self.magnitude is None else self.magnitude.float()
        return replace(self, a=self.a.float(), b=self.b.float(), magnitude=magnitude)


def scale_of(alpha: float, rank: int, *, use_rslora: bool) -> float:
    """The factor of B A: alpha / r, or with rsLoRA alpha / √r."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


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
        """The factors of a module as stored, read now."""
        parts = self.keys[module]
        tensors = {part: self.file.get_tensor(key) for part, key in parts.items()}
        rank = tensors["A"].shape[0]
        scale = scale_of(self._alphas[module], rank, use_rslora=bool(self.declared.get("use_rslora")))
        of_embedding = parse_key(parts["A"]).of_embedding
        return LoraFactors(tensors["A"], tensors["B"], scale, tensors.get("magnitude"), of_embedding)

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
    _refuse_other_kinds(declared, str(folder / ADAPTER_CONFIG))
    path = weights_file(folder)
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"it cannot be read: {error}", where=str(path)) from error
    with file as opened:
        yield _listed(folder, declared, opened, str(path))


def _refuse_other_kinds(declared: Mapping[str, object], where: str) -> None:
    if (kind := declared.get("peft_type")) != "LORA":
        raise AdapterError(f"it is of the kind {kind}, and loraft looks into LoRA", where=where, key="peft_type")
    patterns = declared.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
        raise AdapterError(f"{patterns!r} does not give numbers", where=where, key="alpha_pattern")
    if not _is_number(alpha := declared.get("lora_alpha", 8)):
        raise AdapterError(f"{alpha!r} is no number", where=where, key="lora_alpha")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(folder: Path, declared: Mapping[str, Any], file: Any, where: str) -> AdapterReader:
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
    if halves := sorted(name for name, parts in keys.items() if not {"A", "B"} <= parts.keys()):
        missing = "A" if "A" not in keys[halves[0]] else "B"
        raise AdapterError(f"{halves[0]} and {len(halves) - 1} more have no {missing}", where=where)
    for name, parts in keys.items():
        a, b = (file.get_slice(parts[part]).get_shape() for part in ("A", "B"))
        if a[0] != b[1] or not a[0]:
            raise AdapterError(f"the A of {name} is {a} and its B {b}: they make no product", where=where)
        if "magnitude" in parts and math.prod(m := file.get_slice(parts["magnitude"]).get_shape()) != b[0]:
            raise AdapterError(f"the magnitude of {name} is {m} and its B {b}", where=where)
    return AdapterReader(folder, declared, keys, saved, tuple(unread), dtypes, file)

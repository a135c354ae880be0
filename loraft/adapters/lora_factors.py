"""What the tensors of an adapter's file are, by their keys; and the factors of an update: A, B, magnitude and scale."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from loraft.errors import AdapterError
from loraft.models.modules import matches

ADAPTER_WEIGHTS = "adapter_model.safetensors"
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?:embedding_)?(?P<part>A|B|magnitude_vector)"
    r"(?:\.(?!(?:weight|bias)$)[\w-]+)?(?:\.(?P<end>weight|bias))?"
)
"""A tensor of an update; some tools leave the adapter's name in it."""
Part = Literal["A", "B", "bias", "magnitude", "copy", "tokens", "whole"]
UPDATE: tuple[Part, ...] = ("A", "B", "bias", "magnitude")
PARTS: Mapping[str, Part] = MappingProxyType({"A": "A", "B": "B", "magnitude_vector": "magnitude"})
COPY = re.compile(r"(?P<module>.+)\.(?P<kept_as>base_layer|original_module)\.(?P<end>weight|bias)")
"""A tensor of the base's own, which peft saves where a head or an embedding is adapted, or where biases are trained."""
TRAINED_BIASES = ("all", "lora_only")
TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.[\w-]+)?")
"""The rows of an embedding that were trained by themselves (`trainable_token_indices`)."""
WRAPPERS = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")

INNER = ".base_layer"

ADAPTER = re.compile(r"[A-Za-z0-9_-]{1,64}")
ADAPTER_NAME = "default"
"""What peft calls an adapter that nobody names."""
TAKEN = ("base", "none")
"""What the base without an adapter is called."""


@dataclass(frozen=True)
class AdapterTensor:
    """What a tensor of an adapter's file is.

    Attributes:
        part: `A`, `B`, B's `bias` and `magnitude` are of the update of a module, a `copy` is the base's own tensor,
            `tokens` are rows of a weight, and `whole` is what was trained in the place of the base's.
        module: The module of the base that it belongs to. Of several parameters of one module, which peft wraps one
            around the other, all but the outermost have `.base_layer` behind it.
        name: What the base calls the tensor; of an update the weight that it changes.
    """

    part: Part
    module: str
    name: str


def parse_key(key: str, bias: object = "none") -> AdapterTensor:
    """What a tensor is, told from its key in an adapter's file, and from `bias` of its config: which were trained."""
    key = key.removeprefix("base_model.model.")
    if factor := FACTOR.fullmatch(key):
        module, is_bias = factor["module"], factor["end"] == "bias"
        part = "bias" if is_bias else PARTS[factor["part"]]
        return AdapterTensor(part, module, f"{module}.{'bias' if is_bias else 'weight'}")
    if copy := COPY.fullmatch(key):
        is_trained = bias in TRAINED_BIASES and (copy["kept_as"], copy["end"]) == ("base_layer", "bias")
        return AdapterTensor("whole" if is_trained else "copy", copy["module"], f"{copy['module']}.{copy['end']}")
    if rows := TOKENS.fullmatch(key):
        return AdapterTensor("tokens", rows["module"], f"{rows['module']}.weight")
    name = WRAPPERS.sub("", key)
    return AdapterTensor("whole", name.rpartition(".")[0], name)


def token_rows(indices: object, name: str) -> list[int]:
    """The rows of the weight `name` that `trainable_token_indices` means: a list is for the embedding alone."""
    if isinstance(indices, Mapping):
        module = name.removesuffix(".weight")
        indices = next((rows for owner, rows in indices.items() if matches(module, str(owner))), ())
    return [row for row in indices if isinstance(row, int)] if isinstance(indices, Sequence) else []


def weights_file(folder: Path) -> Path:
    """The file of an adapter's weights.

    Raises:
        AdapterError: It is missing; pickled weights are named, and not opened.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickled = sorted(file.name for file in folder.glob("adapter_model.*"))
        remedy = "The folder is incomplete."
        if pickled:
            remedy = f"{pickled[0]} is not read: pickled weights can run code. Make safetensors of them, in a process "
            remedy += f"that runs none: `loraft.convert({str(folder)!r}, 'OUT')`."
        raise AdapterError(f"there is no {ADAPTER_WEIGHTS}", where=folder, remedy=remedy)
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
        a: `[r, in]`; of a parameter of several experts `[experts · r, in]`.
        b: `[out, r]`; of several experts `[out, r · experts]`.
        scale: s; where adapters are merged their weight is in it.
        magnitude: m `[out]`, of DoRA: the length of each row of W + ΔW is replaced by it.
        experts: How many experts have a matrix each in one parameter; 1 is a weight of two dimensions.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    experts: int = 1

    @property
    def rank(self) -> int:
        """R."""
        return int(self.a.shape[0]) // self.experts

    def expert(self, number: int) -> LoraFactors:
        """The update of one expert's matrix.

        Source: peft, `ParamWrapper.get_delta_weight`: experts are the first part of A's rows, the last of B's columns.
        """
        if self.experts == 1:
            return self
        a = self.a.reshape(self.experts, -1, self.a.shape[1])[number]
        b = self.b.reshape(self.b.shape[0], -1, self.experts)[:, :, number]
        return replace(self, a=a, b=b, experts=1)

    @property
    def changes_nothing(self) -> bool:
        """Whether it is zero, as an adapter that was never trained is."""
        zero = self.scale == 0 or not bool(self.b.any()) or not bool(self.a.any())
        return zero and self.magnitude is None

    def in_float32_on_cpu(self) -> LoraFactors:
        """The same, as merging computes with it."""
        magnitude = None if self.magnitude is None else self.magnitude.float().cpu()
        return replace(self, a=self.a.float().cpu(), b=self.b.float().cpu(), magnitude=magnitude)


def parameters_in(place: str, target_parameters: Iterable[str], target_modules: object) -> list[str]:
    """The parameters that `target_parameters` may mean at a place of factors, in full; none where a module is adapted.

    peft takes a parameter's name alone too, which is then looked for in modules that `target_modules` does not name.
    """
    module = place
    while module.endswith(INNER):
        module = module.removesuffix(INNER)
    named = isinstance(target_modules, Iterable) and matches(module, *map(str, target_modules))
    split = (name.rpartition(".") for name in target_parameters)
    return [f"{module}.{name}" for owner, _, name in split if (matches(module, owner) if owner else not named)]


def scale_of(alpha: float, rank: int, *, use_rslora: bool) -> float:
    """The factor of B A: alpha / r, or with rsLoRA alpha / √r."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank

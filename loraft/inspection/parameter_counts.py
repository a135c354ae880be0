"""Which part of a model each of its parameters belongs to.

It goes by classes and by the registry of architectures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.models.modules import linear_modules, matches, output_head
from loraft.models.registry import ModelSpec
from loraft.models.safetensors_index import TensorHeader, header_of, read_headers

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
         "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
         "BOOL": "bool"}  # fmt: skip
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
               "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """How a model is stored.

    Attributes:
        headers: Its tensors as the files have them; empty where there are no weights.
        usual: The dtype of most of its numbers, or the one that its config names.
        source: Where that is known from.
    """

    headers: Mapping[str, TensorHeader] = field(repr=False)
    usual: str
    source: str

    def dtype_of(self, name: str) -> str:
        """The dtype of the tensor that the model calls `name`; the usual one where its file has none of that name."""
        header = header_of(name, self.headers)
        return NAMES.get(header.dtype, header.dtype) if header is not None else self.usual

    def tensor(self, name: str) -> Tensor | None:
        """The tensor that the model calls `name`, read on its own; None where it is not there."""
        header = header_of(name, self.headers)
        if header is None:
            return None
        with safe_open(header.file, framework="pt") as file:
            read: Tensor = file.get_tensor(header.name)
        return read


def read_storage(folder: Path, config: PreTrainedConfig) -> Storage:
    """How the model in `folder` is stored; a folder with a config alone is told by the config.

    Raises:
        ModelError: A file of weights is damaged or absent though the index lists it.
    """
    if not any(folder.glob("*.safetensors")):  # an index alone is what the Hub gives beside a config
        dtype = getattr(config.get_text_config(), "dtype", None) or config.dtype
        word = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype | str) else "float32"
        return Storage({}, word, "config.json" if dtype else "config.json, which names no dtype: float32 is assumed")
    headers = read_headers(folder)
    counts = Counter[str]()
    for header in headers.values():
        counts[NAMES.get(header.dtype, header.dtype)] += header.stop - header.start
    return Storage(headers, counts.most_common(1)[0][0], "the files' headers")


PARTS = ("embeddings", "positions", "attention", "feed_forward", "norms", "head", "other")


def numbers_by_part(
    model: PreTrainedModel, family: ModelSpec, tables: frozenset[str], dtype_of: Callable[[str], str]
) -> Mapping[str, Mapping[str, int]]:
    """How many numbers each part has, by dtype; a tensor that head and embedding share is the embedding's.

    Args:
        model: On the meta device.
        family: Its row, with the paths that this class has.
        tables: The parameters that tell positions.
        dtype_of: The dtype that a parameter is stored in.
    """
    counts = {part: Counter[str]() for part in PARTS}
    part_of = _parts(model, family, tables)
    for name, weight in model.named_parameters():
        counts[part_of[name]][dtype_of(name)] += weight.numel()
    return {part: dict(count) for part, count in counts.items() if count}


def _parts(model: PreTrainedModel, family: ModelSpec, tables: frozenset[str]) -> dict[str, str]:
    modules = dict(model.named_modules())
    layers = tuple(f"{path}." for path in family.stacks.values())
    attention = _attention(model, family)
    base = f"{model.base_model_prefix}."
    has_base = any(name.startswith(base) for name in modules)
    head = _top_of_head(model)
    looked_up = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    parts = {}
    for name, weight in model.named_parameters():
        owner = name.rpartition(".")[0]
        if name in tables:
            part = "positions"
        elif "norm" in type(modules.get(owner)).__name__.lower():
            part = "norms"
        elif name.startswith(layers):
            part = "attention" if name.startswith(attention) else "feed_forward"
        elif id(weight) in looked_up:
            part = "embeddings"
        else:
            around = (has_base and not name.startswith(base)) or name.partition(".")[0] == head
            part = "head" if around else "other"
        parts[name] = part
    return parts


def _attention(model: nn.Module, family: ModelSpec) -> tuple[str, ...]:
    """The modules around the projections of attention, in every layer, as the beginnings of names."""
    around: dict[str, None] = {}
    for path in family.stacks.values():
        stack = model.get_submodule(path)
        if family.attention:
            held = (name for name in linear_modules(stack) if any(matches(name, part) for part in family.attention))
            around.update({f"{path}.{name.rpartition('.')[0]}.": None for name in held})
        else:
            named = (name for name, _ in stack.named_modules() if _sounds_like_attention(name.rpartition(".")[2]))
            around.update({f"{path}.{name}.": None for name in named})
    return tuple(around)


def _sounds_like_attention(name: str) -> bool:
    """In a family that the table does not have; `attention_norm` and the like are norms and known by their class."""
    return "attn" in name.lower() or "attention" in name.lower()


def _top_of_head(model: PreTrainedModel) -> str | None:
    """The outermost module that the output embeddings lie in."""
    head = output_head(model)
    found = (name for name, module in model.named_modules() if module is head)
    return next(found, "").partition(".")[0] or None if head is not None else None

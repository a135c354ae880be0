"""How a model's tensors are stored: dtypes and bytes, from the headers of its files or from its config.

It refuses to load weights, save for single small tensors that somebody asks for by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

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

"""How a model's weights are stored: in which dtype, how many bytes that is, and a tensor by itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loraft.models.base_files import ModelInFiles
from loraft.models.packed_weights import PackedHeader
from loraft.models.safetensors_index import DTYPES, TensorHeader, header_of

NAMES = {word: str(dtype).removeprefix("torch.") for word, dtype in DTYPES.items()}
"""torch's names of dtypes by the words that safetensors has for them."""
COMPUTED_IN = ("float64", "float32", "float16", "bfloat16")
"""The dtypes that products are made in, and keys and values kept in."""


def bytes_of(dtype: str) -> float:
    """The bytes of a number, constants of quantized ones apart, whose bits their name ends with, such as nf4."""
    known = next((DTYPES[word] for word, name in NAMES.items() if name == dtype), None)
    bits = re.search(r"\d+$", dtype)
    return known.itemsize if known else int(bits[0]) / 8 if bits else 4


def _word_for(header: TensorHeader) -> str:
    return header.kind if isinstance(header, PackedHeader) else NAMES.get(header.dtype, header.dtype)


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
        return _word_for(header) if header is not None else self.usual

    def tensor(self, name: str) -> Tensor | None:
        """The tensor that the model calls `name`, read on its own; None where it cannot be read here."""
        header = header_of(name, self.headers)
        if header is None or (isinstance(header, PackedHeader) and header.unpack is None):
            return None
        return header.tensor(torch.float32)


def read_storage(base: ModelInFiles) -> Storage:
    """How a model is stored; one without weights is told by its config."""
    if not base.headers:
        config = base.model.config
        dtype = getattr(config.get_text_config(), "dtype", None) or config.dtype
        word = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype | str) else "float32"
        return Storage({}, word, "config.json" if dtype else "config.json, which names no dtype: float32 is assumed")
    counts = Counter[str]()
    for header in base.headers.values():
        counts[_word_for(header)] += header.stop - header.start
    return Storage(base.headers, counts.most_common(1)[0][0], "the files' headers")

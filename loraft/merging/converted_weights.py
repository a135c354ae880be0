"""Tensors that loading makes of others in the files, such as all experts in one: merged, and taken apart again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from loraft.errors import AdapterError
from loraft.merging.merged_pieces import merged_pieces
from loraft.merging.prepare_merge import Merge
from loraft.models.auto_model import meta_model
from loraft.models.load_model import load_config
from loraft.models.packed_weights import PackedHeader
from loraft.models.safetensors_index import TORCH_DTYPES, TensorHeader, mapped_tensor
from loraft.models.weight_names import Conversion


class RemadeTensors:
    """The tensors of the base's files that a merge changes and that loading computes with, by their names there.

    Those that are computed with one another are made together, once one of them is asked for.
    """

    def __init__(self, merge: Merge) -> None:
        """Find what is computed with what.

        Raises:
            AdapterError: transformers does not know the way back.
        """
        self._merge, self._made = merge, dict[str, Tensor]()
        self._groups: dict[str, tuple[str, ...]] = {}
        quantized = merge.quantized if merge.storage is not None else frozenset()
        changed = sorted(merge.converted.keys() & {*merge.plan.changed, *quantized})
        if not changed:
            return
        model = meta_model(load_config(merge.target.model, None, merge.labels))
        self._conversion, state = Conversion(model, merge.headers), model.state_dict()
        for name, group in _groups(merge, changed).items():
            parts = {header.name for each in group for header in merge.converted[each]}
            if self._conversion.back({each: state[each] for each in group}).keys() != parts:
                raise _stuck(merge, name)
            self._groups |= dict.fromkeys(parts, group)

    def take(self, name: str) -> Tensor | None:
        """A tensor of the files as the merge makes it, which is given once; None of one that is merged without this.

        Raises:
            NonFiniteError: A merged tensor holds NaN or infinity.
        """
        if name not in self._groups:
            return None
        if name not in self._made:
            self._made |= self._remade(self._groups[name])
        return self._made.pop(name)

    def _remade(self, group: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of the files that some of the model are made of, merged."""
        merge = self._merge
        parts = {header.name: header for name in group for header in merge.converted[name]}
        stored = TORCH_DTYPES[next(iter(parts.values())).dtype]
        loaded_in = (merge.trained_dtype or merge.dtype) if merge.is_packed else stored
        loaded = self._conversion.load({name: _read(header, loaded_in) for name, header in parts.items()})
        dtype, merged = merge.dtype if merge.casts else stored, dict[str, Tensor]()
        for name in group:
            shape, whole = loaded[name].shape, loaded.pop(name)
            merged[name] = torch.cat(list(merged_pieces(merge, name, whole, dtype))).view(shape)
        return self._conversion.back(merged)


def _groups(merge: Merge, changed: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The tensors of the model that are made of some of the same tensors as one that is changed, by its name."""
    of_part = defaultdict[str, list[str]](list)
    for name, parts in merge.converted.items():
        for part in parts:
            of_part[part.name].append(name)
    found: dict[str, tuple[str, ...]] = {}
    for name in changed:
        if not any(name in group for group in found.values()):
            found[name] = tuple(dict.fromkeys(each for part in merge.converted[name] for each in of_part[part.name]))
    return found


def _read(header: TensorHeader, dtype: torch.dtype) -> Tensor:
    """A tensor of the base as training computed with it."""
    return header.unpacked(dtype) if isinstance(header, PackedHeader) else mapped_tensor(header).to(dtype)


def _stuck(merge: Merge, name: str) -> AdapterError:
    message = f"it changes {name}, which the base's files hold in another form, with no known way back"
    remedy = "Use it unmerged: `loraft.generate` with `adapters`."
    return AdapterError(message, where=str(merge.adapters[0].files.folder), remedy=remedy)

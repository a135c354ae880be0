"""Tensors that loading makes of others in the files, such as all experts in one: merged, and taken apart again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from loraft.errors import AdapterError
from loraft.merging.merged_pieces import merged_pieces
from loraft.merging.prepare_merge import Merge
from loraft.models.auto_model import meta_model
from loraft.models.device import select_device
from loraft.models.load_model import load_model
from loraft.models.safetensors_index import TORCH_DTYPES


def remade_tensors(merge: Merge) -> dict[str, Tensor]:
    """The tensors of the base's files that a merge changes and that loading computes with, by their names there.

    The base is loaded whole for this, and only where there are such tensors.

    Raises:
        AdapterError: transformers does not know the way back.
        NonFiniteError: A merged tensor holds NaN or infinity.
    """
    quantized = merge.quantized if merge.storage is not None else frozenset()
    changed = merge.converted.keys() & {*merge.plan.changed, *quantized}
    if not changed:
        return {}
    parts = {header.name: header for name in changed for header in merge.converted[name]}
    together = [name for name, made_of in merge.converted.items() if any(part.name in parts for part in made_of)]
    model, stored = merge.target.model, TORCH_DTYPES[next(iter(parts.values())).dtype]
    loaded_in = (merge.trained_dtype or merge.dtype) if merge.is_packed else stored
    placement = replace(select_device(model.section), device="cpu", dtype=loaded_in)
    loaded = load_model(model, placement, group=None, labels=merge.labels).model
    state, dtype = loaded.state_dict(), merge.dtype if merge.casts else stored
    whole = {name: torch.cat(list(merged_pieces(merge, name, state[name], dtype))) for name in together}
    # What dequantized the files while they were loaded has no way back, and what made one tensor of several has.
    way_back = meta_model(loaded.config) if merge.is_packed else loaded
    remade: dict[str, Tensor] = revert_weight_conversion(
        way_back, {name: tensor.view(state[name].shape) for name, tensor in whole.items()}
    )
    if remade.keys() != parts.keys():
        raise _stuck(merge, min(changed), "in another form, with no known way back")
    return remade


def _stuck(merge: Merge, name: str, how: str) -> AdapterError:
    message = f"it changes {name}, which the base's files hold {how}"
    remedy = "Use it unmerged: `loraft.generate` with `adapters`."
    return AdapterError(message, where=str(merge.adapters[0].files.folder), remedy=remedy)

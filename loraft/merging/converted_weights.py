"""Tensors that loading makes of others in the files, such as all experts in one: merged, and taken apart again."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from loraft.adapters.effect import updated_pieces
from loraft.errors import AdapterError
from loraft.merging.prepare_merge import Merge
from loraft.models.auto_model import class_of, from_pretrained
from loraft.models.load_model import load_config
from loraft.models.safetensors_index import TORCH_DTYPES


def remade_tensors(merge: Merge) -> dict[str, Tensor]:
    """The tensors of the base's files that a merge changes and that loading computes with, by their names there.

    The base is loaded whole for this, and only where there are such tensors.

    Raises:
        AdapterError: transformers does not know the way back.
    """
    changed = {name for name in merge.plan.changed if name in merge.converted}
    if not changed:
        return {}
    parts = {header.name: header for name in changed for header in merge.converted[name]}
    together = [name for name, made_of in merge.converted.items() if any(part.name in parts for part in made_of)]
    target = merge.target.model
    config = load_config(target, None, merge.labels)
    stored = TORCH_DTYPES[next(iter(parts.values())).dtype]
    model = from_pretrained(
        class_of(config), target.folder, {"config": config, "dtype": stored}, merge.family.classifier
    )
    state = model.state_dict()
    remade: dict[str, Tensor] = revert_weight_conversion(
        model, {name: _merged(merge, name, state[name]) for name in together}
    )
    if remade.keys() != parts.keys():
        message = f"it changes {min(changed)}, which the base's files hold in another form, with no known way back"
        remedy = "Use it unmerged: `loraft.generate` with `adapters`."
        raise AdapterError(message, where=str(merge.adapters[0].files.folder), remedy=remedy)
    return remade


def _merged(merge: Merge, name: str, weight: Tensor) -> Tensor:
    updates = merge.plan.updates.get(name)
    if updates is None:
        return weight
    dtype = merge.dtype if merge.casts else weight.dtype
    pieces = updated_pieces(weight, updates, dtype, transposed=name in merge.plan.transposed)
    return torch.cat(list(pieces)).view(weight.shape)

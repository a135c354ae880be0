"""A model in parts, written as the ordinary files of a whole one: a tensor is whole as long as it is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from loraft.distributed.sharding import plain
from loraft.models.safetensors_index import Slot, slot_of, write_index, write_shard

MOST_BYTES = 50 * 10**9
"""Of a file, unless a tensor has more; transformers' own limit."""
PATTERN = "model{suffix}.safetensors"


def saved_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What the files of a model hold, in parts perhaps, by the names that the model has; wide numbers come first."""
    left_out = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
    found = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    return dict(sorted(found.items(), key=lambda item: -item[1].element_size()))


def is_written_one_by_one(model: PreTrainedModel) -> bool:
    """Whether what files hold can be made of one tensor of the model at a time: no two of them are joined for them."""
    named = {name: _shape_of(tensor) for name, tensor in saved_tensors(model).items()}
    at_once = revert_weight_conversion(model, dict(named))
    in_turn = {name: each for one, tensor in named.items() for name, each in _of_files(model, one, tensor).items()}
    return {name: each.shape for name, each in at_once.items()} == {name: each.shape for name, each in in_turn.items()}


def gathered_in_turn(model: PreTrainedModel, *, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `saved_tensors`, whole and in main memory; all ranks ask for each together, whoever `keep`s it."""
    for name, tensor in saved_tensors(model).items():
        whole = plain(tensor.detach())
        yield name, whole.cpu() if keep else whole


def write_whole_model(model: PreTrainedModel, gathered: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write the weights of a model, which come as `gathered_in_turn` gives them, into a folder."""
    slots = {
        name: slot_of(name, each)
        for one, tensor in saved_tensors(model).items()
        for name, each in _of_files(model, one, _shape_of(tensor)).items()
    }
    waiting: dict[str, Tensor] = {}

    def numbers(slot: Slot) -> Iterator[Tensor]:
        while slot.name not in waiting:
            waiting.update(_of_files(model, *next(gathered)))
        yield waiting.pop(slot.name)

    spread = split_state_dict_into_shards_factory(
        slots, get_storage_size=lambda slot: slot.num_bytes, filename_pattern=PATTERN, max_shard_size=MOST_BYTES
    )
    for file, names in spread.filename_to_tensors.items():
        write_shard(folder / file, [slots[name] for name in names], numbers)
    if spread.is_sharded:
        write_index(folder, spread.tensor_to_filename, spread.metadata["total_size"])


def _of_files(model: PreTrainedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What the files of a model hold of one of its tensors, by the names there."""
    found: dict[str, Tensor] = revert_weight_conversion(model, {name: tensor})
    return found


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor like it that holds nothing."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

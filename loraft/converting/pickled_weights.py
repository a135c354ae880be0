"""Which files of a folder hold pickled weights, and what they become; nothing here opens one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraft.adapters.adapter_config import ADAPTER_CONFIG
from loraft.adapters.lora_factors import ADAPTER_WEIGHTS
from loraft.errors import ModelError
from loraft.figures import listed
from loraft.models.safetensors_index import INDEX, PICKLED, SINGLE, weight_map
from loraft.models.sources import SMALL_FILES, files_at_hub, from_hub

MODEL, MODEL_INDEX, ADAPTER = "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin"
"""What transformers and peft call their pickled files."""
STATE = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""How pickled files begin that are a run's and hold no weights."""
AS_IT_IS = "Name it where a model is asked for."
COMPANY = (*SMALL_FILES, "*.txt", "README.md", "LICENSE*")
"""What is copied: config, tokenizer, card and licence; no code, and no weights of other programs."""


@dataclass(frozen=True)
class PickledWeights:
    """The pickled weights of a model or an adapter.

    Attributes:
        folder: What else is of the model lies there.
        files: Each pickled file, and the name of what is made of it.
        listed: The tensors that an index lists, with the file of each.
    """

    folder: Path
    files: Mapping[Path, str]
    listed: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """What the files have."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter."""
        return ADAPTER_WEIGHTS in self.files.values()


def find_weights(source: str, revision: str | None) -> PickledWeights:
    """The pickled weights that a folder, a file in one, or a Hub id means.

    Raises:
        ModelError: There are none, there are safetensors already, several may be meant, or a shard is absent.
    """
    path = Path(os.path.expanduser(source))
    if revision is not None and os.path.exists(path):
        raise ModelError("only Hub models have revisions", parameter="revision", remedy="Leave it out.")
    if source.startswith("builtin:") or source.endswith((".gguf", ".safetensors")):
        raise ModelError(
            "is no pickle: loraft reads it as it is", where=source, remedy="Name it where a model is asked."
        )
    if os.path.isfile(path):
        return PickledWeights(path.parent, {path: ADAPTER_WEIGHTS if path.name == ADAPTER else SINGLE})
    folder = path if os.path.isdir(path) else _fetched(source, revision)
    _refuse_safetensors(source, sorted(file.name for file in folder.glob("*.safetensors")))
    if (folder / MODEL_INDEX).is_file():
        return _in_shards(folder)
    for name, out in ((MODEL, SINGLE), (ADAPTER, ADAPTER_WEIGHTS)):
        if (folder / name).is_file():
            return PickledWeights(folder, {folder / name: out})
    return _only_one(source, folder)


def _fetched(name: str, revision: str | None) -> Path:
    at_the_root = (file for file in files_at_hub(name, revision) if "/" not in file)
    _refuse_safetensors(name, [file for file in at_the_root if file.endswith(".safetensors")])
    return from_hub(name, revision, [*COMPANY, "pytorch_model*.bin", ADAPTER], key="model.name_or_path")


def _refuse_safetensors(source: str, found: list[str]) -> None:
    if found:
        message = f"has safetensors already ({listed(found)}), which loraft reads as they are"
        raise ModelError(message, where=source, remedy=AS_IT_IS)


def _in_shards(folder: Path) -> PickledWeights:
    listed = weight_map(folder / MODEL_INDEX, ".bin")
    shards = sorted(set(listed.values()))
    if absent := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ModelError("the file is missing, and the index lists it", where=folder / absent[0])
    if len(shards) == 1:
        return PickledWeights(folder, {folder / shards[0]: SINGLE}, listed)
    names = (f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1))
    return PickledWeights(folder, {folder / shard: name for shard, name in zip(shards, names, strict=True)}, listed)


def _only_one(source: str, folder: Path) -> PickledWeights:
    """The one file of weights that is called otherwise."""
    pickled = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLED and not file.name.startswith(STATE)]
    if not pickled:
        message = f"there are no pickled weights: no {MODEL}, and no other file that ends in {', '.join(PICKLED)}"
        raise ModelError(message, where=source, remedy=f"A model has {SINGLE} or {INDEX}, and is read as it is.")
    if len(pickled) > 1:
        message = f"any of {listed([file.name for file in pickled])} may hold the weights"
        raise ModelError(message, where=source, remedy=f"Name the file: {pickled[0]}.")
    return PickledWeights(folder, {pickled[0]: ADAPTER_WEIGHTS if (folder / ADAPTER_CONFIG).is_file() else SINGLE})

"""An adapter's folder, read and distrusted: safetensors and JSON only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict

from loraft.adapters.adapter_config import ADAPTER_CONFIG, Json, parse_adapter_config, refuse_changes
from loraft.adapters.adapter_reader import AdapterReader, floating_tensors
from loraft.adapters.lora_factors import ADAPTER_WEIGHTS, UPDATE, parse_key, weights_file
from loraft.errors import AdapterError, Problem
from loraft.figures import counted
from loraft.io.atomic import read_json
from loraft.io.checksums import RECORD, altered_settings, refuse_altered, sha256_of

OWN_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
OF_ANOTHER_BASE = (
    "Name the base that it was trained on: `base_model=MODEL`. Where its vocabulary was made larger in training, let "
    "peft write base and adapter as one model: merge_and_unload(), then save_pretrained()."
)


@dataclass(frozen=True, eq=False)
class AdapterFiles(AdapterReader):
    """An adapter that is known to be sound: every value is finite, and its parts agree.

    Attributes:
        config: `adapter_config.json`, in peft's type.
        record: `loraft.json`, or None for an adapter that loraft did not write.
        base_copies: The base's own weights that peft saved with them, by their keys in the file.
    """

    config: LoraConfig
    record: Json | None
    base_copies: Mapping[str, torch.Tensor]

    @cached_property
    def biases(self) -> frozenset[str]:
        """The biases of the base that were trained, where the weight beside them was not."""
        if self.config.bias == "none":
            return frozenset()
        return frozenset(
            name for name in self.whole if name.endswith(".bias") and f"{name[:-4]}weight" not in self.whole
        )

    @property
    def saved(self) -> frozenset[str]:
        """The modules that have weights of their own (`modules_to_save`), down to the leaves."""
        return frozenset(name.rpartition(".")[0] for name in self.whole if name not in self.biases)

    def check_base(self, fingerprint: str) -> tuple[str, ...]:
        """Compare the base that the adapter was trained on with the one that is loaded.

        Returns:
            What to tell the user: an adapter without `loraft.json` cannot be compared, and settings may have been
            changed.

        Raises:
            AdapterError: If they differ.
        """
        name = self.config.base_model_name_or_path
        base = self.record.get("base") if self.record else None
        recorded = base.get("fingerprint") if isinstance(base, Mapping) else None
        altered = altered_settings(self.folder)
        if not isinstance(recorded, str):
            said = f"{self.folder} names {name or 'no model'} as its base, and not which weights it was trained on"
            return (f"{said}: the base was not compared.", *altered)
        if recorded != fingerprint:
            message = "the adapter was trained on other base weights than these"
            remedy = f"Load it onto {name}, in the revision that it was trained on."
            raise AdapterError(message, where=self.folder, remedy=remedy)
        return altered


def read_adapter(folder: Path) -> AdapterFiles:
    """Read an adapter and check it against itself.

    Raises:
        AdapterError: If files are missing or damaged, if it is no LoRA adapter, or if its parts disagree.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise AdapterError(f"there is no {ADAPTER_CONFIG}", where=folder, remedy="Name the folder of an adapter.")
    where = str(folder / ADAPTER_CONFIG)
    declared = read_json(folder / ADAPTER_CONFIG)
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    config = parse_adapter_config(declared, where)
    refuse_changes(declared, record, where)
    tensors = _sound_tensors(weights_file(folder))
    copies = {key: tensors.pop(key) for key in [*tensors] if parse_key(key, config.bias).part == "copy"}
    files = AdapterFiles(folder, vars(config), tensors, (), config, record, copies)
    for name, (rows, tensor) in files.tokens.items():
        if len(rows) != len(tensor):
            message = f"it names {len(rows)} rows of {name}, and the tensors hold {len(tensor)}"
            raise AdapterError(message, where=where, key="trainable_token_indices")
    for name, rank in files.ranks.items():
        if name not in files.parameters and (said := files.ranks_said[name]) != rank:
            message = f"it says rank {said} for {name}, and the tensors have rank {rank}"
            raise AdapterError(message, where=where, key="r")
    return files


def insert(model: PeftModel, files: AdapterFiles, name: str) -> None:
    """Put the tensors of a folder into the adapter layers of `model`, which must take exactly these.

    Raises:
        AdapterError: If a key is missing or left over, a shape differs, or weights of another base lie beside them.
    """
    refuse_misfit(model, files, name)
    refuse_other_base(files, model.get_parameter)
    # peft's own way renames them as transformers renames a base's tensors, and for some models finds no place for them.
    state = model.state_dict()
    names = {id(tensor): key for key, tensor in state.items()}
    places = adapter_tensors(model, name, state)
    model.load_state_dict({names[id(places[key])]: tensor for key, tensor in files.tensors.items()}, strict=False)


def refuse_misfit(model: PeftModel, files: AdapterFiles, name: str) -> None:
    """Compare the tensors of a folder with those of the adapter layers of `model`, on the meta device too.

    What fits is then compared with what was written, byte for byte.

    Raises:
        AdapterError: If a key is missing or left over, a shape differs, or a file is not what was written.
    """
    refuse_other_base(files, lambda key: model.get_parameter(key).to("meta"))
    every, bias = adapter_tensors(model, name), files.config.bias
    expected = {key: tensor for key, tensor in every.items() if parse_key(key, bias).part != "copy"}
    problems = [
        *(f"the tensor {key} is missing" for key in sorted(expected.keys() - files.tensors.keys())),
        *(f"the base has no place for the tensor {key}" for key in sorted(files.tensors.keys() - expected.keys())),
        *(
            f"the tensor {key} is {list(files.tensors[key].shape)} and the base needs {list(tensor.shape)}"
            for key, tensor in sorted(expected.items())
            if key in files.tensors and files.tensors[key].shape != tensor.shape
        ),
    ]
    if problems:
        unsaid = [f"and {len(problems) - 10} more like these"] if len(problems) > 10 else []
        where = str(files.folder / ADAPTER_WEIGHTS)
        raise AdapterError.several(Problem(message, where) for message in [*problems[:10], *unsaid])
    refuse_altered(files.folder, lambda name: name in OWN_FILES, AdapterError)


def refuse_other_base(files: AdapterFiles, weight: Callable[[str], torch.Tensor]) -> None:
    """Compare the base's own weights beside an adapter's with the base's; on the meta device their sizes alone.

    Where they differ the adapter was trained on other weights, such as those of a vocabulary that grew, and on this
    base it would answer wrongly. `weight` gives the base's for a key of the adapter's file; it raises AttributeError
    or KeyError where the base has none.

    Raises:
        AdapterError: With every weight that is another than the base's.
    """
    where = str(files.folder / ADAPTER_WEIGHTS)
    told = [_difference(key, copy, weight) for key, copy in sorted(files.base_copies.items())]
    if problems := [Problem(f"it brings the {what}", where, remedy=OF_ANOTHER_BASE) for what in told if what]:
        raise AdapterError.several(problems)


def _difference(key: str, copy: torch.Tensor, weight: Callable[[str], torch.Tensor]) -> str | None:
    name = parse_key(key).name
    try:
        own = weight(key).detach()
    except (AttributeError, KeyError):
        return f"{name} of its base, and this base has none"
    if own.shape != copy.shape:
        return f"{name} of another base: it is {list(copy.shape)} there, and {list(own.shape)} here"
    if own.device.type == "meta":
        return None
    own = own.to(copy.device)  # they are one if the narrower of their dtypes cannot tell them apart
    same = torch.equal(copy.to(own.dtype), own) or torch.equal(copy, own.to(copy.dtype))
    return None if same else f"{name} of another base: its numbers are not this base's"


def adapter_tensors(
    model: PeftModel, name: str, state: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of an adapter under the keys of PEFT's files: those of `state`, which is the model's.

    peft would look for the base on the Hub to see whether the vocabulary grew; loraft never resizes it. By
    `bias: all` it names the biases of a module that is trained whole once more, by where it keeps them.
    """
    # Given the state, it does not take a bias of B for a part of a matrix.
    state = model.state_dict() if state is None else state
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, state, adapter_name=name, save_embedding_layers=False
    )
    inside = {"original_module", "modules_to_save"}
    return {key: tensor for key, tensor in tensors.items() if inside.isdisjoint(key.split("."))}


def non_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """What to say of tensors of which some hold NaN or infinity."""
    of_floats = (name for name, tensor in tensors.items() if tensor.is_floating_point())
    bad = [name for name in of_floats if not bool(torch.isfinite(tensors[name]).all())]
    return f"{counted(len(bad), 'tensor holds', 'tensors hold')} NaN or infinity, first {bad[0]}" if bad else None


def _sound_tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors, where = floating_tensors(path), str(path)
    if flat := [key for key, tensor in tensors.items() if parse_key(key).part in UPDATE and not tensor.dim()]:
        raise AdapterError(f"the tensor {flat[0]} is one number, and has no rank", where=where)
    if said := non_finite(tensors):
        raise AdapterError(said, where=where)
    return tensors


def digests(folder: Path) -> list[str]:
    """What tells an adapter from every other: the sha256 of its config and that of its weights."""
    return [sha256_of(folder / name) for name in OWN_FILES]

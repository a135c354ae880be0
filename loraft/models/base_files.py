"""What of a model its files hold, told from their headers and the model on the meta device.

transformers renames some tensors of files while it loads, and makes one of several.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from loraft.errors import ModelError
from loraft.models.auto_model import meta_model
from loraft.models.hf_config import class_names, in_order, written_config
from loraft.models.modules import is_within
from loraft.models.packed_weights import PackedHeader, weight_headers
from loraft.models.probe import spec_of
from loraft.models.safetensors_index import (
    TORCH_DTYPES,
    Origin,
    TensorHeader,
    check_weights,
    differ,
    expected_tensors,
    header_of,
)
from loraft.models.stored_weights import ORIGINAL

BESIDE_PACKED = (".bias", ".scales")
"""What quantizers write beside each weight, zero where the model has no place for it."""


@dataclass(frozen=True, eq=False)
class ModelInFiles:
    """A model on the meta device, and what the files in a folder hold of it.

    Attributes:
        has_weights: There are weights to look at.
        headers: Every tensor of the files by its name there, a quantized one as the weight that it stands for.
        origins: What the model's tensors are in the files, by their names in the model.
        notes: What there is to say about ties, a sentence.
    """

    folder: Path
    has_weights: bool
    model: PreTrainedModel
    headers: Mapping[str, TensorHeader]
    origins: Mapping[str, Origin]
    notes: tuple[str, ...] = ()

    @property
    def is_packed(self) -> bool:
        """Whether the files hold quantized weights."""
        return any(isinstance(header, PackedHeader) for header in self.headers.values())

    @property
    def packed_modules(self) -> list[str]:
        """The modules of the model whose weights lie quantized in the files."""
        named = (name for name, _ in self.model.named_modules())
        return [name for name in named if isinstance(header_of(f"{name}.weight", self.headers), PackedHeader)]

    @property
    def placeless(self) -> list[TensorHeader]:
        """The tensors of the files that the model has no place for."""
        placed = {part.name for origin in self.origins.values() for part in origin.parts}
        return [header for name, header in self.headers.items() if name not in placed]


def base_files(config: PreTrainedConfig, folder: Path, *, has_weights: bool = True) -> ModelInFiles:
    """The model of a config on the meta device, with what the files in a folder hold of it.

    transformers leaves apart what a config ties where the files hold other numbers for each. The config then says so
    too: whatever asks it later, growing embeddings or a server, would tie them after all.

    Raises:
        ModelError: The config's sizes make no model, or the files cannot be read.
    """
    model = meta_model(config)
    headers = weight_headers(folder, model) if has_weights else {}
    origins, tied = as_model_names(model, headers), model.all_tied_weights_keys
    if not tied or not all(
        name in origins and of in origins and _are_apart(origins[name], origins[of]) for name, of in tied.items()
    ):
        return ModelInFiles(folder, has_weights, model, headers, origins)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    both = " and ".join(next(iter(tied.items())))
    note = f"config.json ties {both}, and the files hold other numbers for each: both are used as they are"
    return ModelInFiles(folder, has_weights, meta_model(config), headers, origins, (note,))


def _are_apart(one: Origin, other: Origin) -> bool:
    if len({isinstance(part, PackedHeader) for part in (*one.parts, *other.parts)}) > 1:
        return True
    return any(differ(*parts) for parts in zip(one.parts, other.parts, strict=True))


@dataclass(frozen=True)
class ModelTensors:
    """What of a model its files hold.

    Attributes:
        held: The tensors that they hold, with their shapes.
        new: The modules of a classifier's head that are new: the files lack them, or have them for other classes.
        unused: The weights in the files that have no place in the model, and are not of a kind that it always leaves.
    """

    held: Mapping[str, tuple[int, ...]]
    new: tuple[str, ...]
    unused: tuple[TensorHeader, ...]


def require_tensors(base: ModelInFiles, labels: Sequence[str]) -> ModelTensors:
    """Refuse files that lack something of a model, the head of a classifier apart; where there are none it is new.

    The module that decides between the classes is new too where the files have it for other classes: it would begin
    with what is right for others. Of two classes that have transformers' own names, `LABEL_0` and `LABEL_1`, a
    config.json says nothing.

    Raises:
        ModelError: As `check_weights` does.
    """
    model, new = base.model, tuple[str, ...]()
    head = spec_of(model.config, "classifier").classifier if labels else ()
    if not base.has_weights:
        return ModelTensors({}, head, ())
    expected = expected_tensors(model)
    if head:
        named = written_config(base.folder / "config.json").get("id2label")
        known = in_order(named) if isinstance(named, Mapping) else class_names(PreTrainedConfig())
        absent = [name for name in expected if name not in base.origins]
        new = tuple(
            module
            for module in head
            if (module == head[-1] and known != tuple(labels)) or any(is_within(name, module) for name in absent)
        )
    held = {name: shape for name, shape in expected.items() if not is_within(name, *new)}
    check_weights(base.folder, held, base.origins)
    ignored, beside = model._keys_to_ignore_on_load_unexpected or (), BESIDE_PACKED if base.is_packed else ()
    unused = tuple(
        header
        for header in base.placeless
        if header.dtype in TORCH_DTYPES
        and not header.name.endswith(beside)
        and not any(re.search(pattern, header.name) for pattern in ignored)
    )
    return ModelTensors(held, new, unused)


def unpacked_tensors(base: ModelInFiles, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the files by its name there, those that are quantized as the weights that they stand for.

    Raises:
        ModelError: One is of no use to the model, and yet not zero: leaving it out would make another model.
    """
    tensors = {name: header.tensor(dtype) for name, header in base.headers.items()}
    for header in base.placeless:
        if header.name.endswith(BESIDE_PACKED) and bool(tensors.pop(header.name).any()):
            message = f"tensor {header.name} has no place in the model, and is not zero"
            raise ModelError(message, where=header.file, remedy=ORIGINAL)
    return tensors


def as_model_names(model: PreTrainedModel, headers: Mapping[str, TensorHeader]) -> dict[str, Origin]:
    """The tensors of a model (on the meta device will do) that its files hold, by the names that the model has."""
    names = dict.fromkeys([*model.state_dict(), *model.all_tied_weights_keys])
    found = {name: Origin((header,), False) for name in names if (header := header_of(name, headers)) is not None}
    taken = {origin.parts[0].name for origin in found.values()}
    rest = [header for header in headers.values() if header.name not in taken]
    if not rest:
        return found
    renaming, made = _Renaming(model), dict[str, Origin]()
    for header in rest:
        for name, computed in renaming.of(header.name):
            if name in names and name not in found:
                before = made.get(name, Origin((), False))
                made[name] = Origin((*before.parts, header), before.converted or computed)
    return found | made


class Conversion:
    """What loading makes of the tensors of files, some at a time, and the way back.

    Args:
        model: The model that is loaded; on the meta device will do.
        names: The names of all tensors of its files: what of transformers' rules applies to none has no way back.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        self._model, self._renaming = model, _Renaming(model)
        for name in names:
            self._renaming.first(name)
        used: list[WeightTransform] = [each for each in self._renaming.rules if each.was_used()]
        model._weight_conversions = used  # type: ignore[assignment]  # where transformers keeps them

    def load(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the model, by their names there, that are made of these of the files."""
        made: dict[str, WeightConverter] = {}
        for name in sorted(tensors, key=dot_natural_key):
            first, pattern = self._renaming.first(name)
            assert pattern is not None, "it is one that loading computes with"
            rule = next(each for each in self._renaming.converters if pattern in each.source_patterns)
            converter = made.setdefault(first, copy.deepcopy(rule))
            converter.add_tensor(first, name, pattern, tensors[name])  # type: ignore[arg-type]  # a tensor will do
        model, config = self._model, self._model.config
        found = (each.convert(first, model=model, config=config).items() for first, each in made.items())
        return {name: each[0] if isinstance(each, list) else each for several in found for name, each in several}

    def back(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the files, by their names there, that these of the model were made of."""
        found: dict[str, Tensor] = revert_weight_conversion(self._model, dict(tensors))
        return found


class _Renaming:
    """What loading makes of the tensors of files."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.rules = get_model_conversion_mapping(model)
        self._renamings = [each for each in self.rules if isinstance(each, WeightRenaming)]
        self.converters = [each for each in self.rules if isinstance(each, WeightConverter)]
        self._prefix, self._state = model.base_model_prefix, model.state_dict()

    def of(self, name: str) -> Iterator[tuple[str, bool]]:
        """What one of the files becomes, or a part of: one tensor of the model or several; and whether it changes."""
        first, pattern = self.first(name)
        yield first, pattern is not None
        for converter in self.converters:
            begin, *others = converter.target_patterns
            if pattern in converter.source_patterns and begin in first:
                yield from ((first.replace(begin, other), True) for other in others)

    def first(self, name: str) -> tuple[str, str | None]:
        """The first tensor of the model that one of the files goes into, and the pattern by which it is computed."""
        found: tuple[str, str | None] = rename_source_key(
            name, self._renamings, self.converters, self._prefix, self._state
        )
        return found

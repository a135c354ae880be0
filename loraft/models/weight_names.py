"""What a model calls the tensors of its files: transformers renames some while it loads, and makes one of several."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from loraft.models.safetensors_index import Origin, TensorHeader, header_of


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

"""What a model calls the tensors of its files: transformers renames some while it loads, and makes one of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

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


class _Renaming:
    """What loading makes of the tensors of files."""

    def __init__(self, model: PreTrainedModel) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self._prefix, self._state = model.base_model_prefix, model.state_dict()

    def of(self, name: str) -> Iterator[tuple[str, bool]]:
        """What one of the files becomes, or a part of: one tensor of the model or several; and whether it changes."""
        first, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        yield first, pattern is not None
        for converter in self._converters:
            begin, *others = converter.target_patterns
            if pattern in converter.source_patterns and begin in first:
                yield from ((first.replace(begin, other), True) for other in others)

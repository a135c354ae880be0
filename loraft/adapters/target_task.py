"""What a target is for, and its classes: as recorded in training, or as its config or its head tells."""

from __future__ import annotations

from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.metadata import AdapterTarget, ResolvedTarget
from loraft.config.choices import TASK_OF_GROUP, TaskName
from loraft.errors import AdapterError
from loraft.models.hf_config import class_names, is_classifier
from loraft.models.load_model import load_any_config
from loraft.models.registry import CLASSIFIERS, FAMILIES, spec_of
from loraft.tasks import TASKS


def task_of(target: ResolvedTarget) -> TaskName:
    """The task that a target was trained for, or that a base which nobody recorded anything of can do.

    Raises:
        InvalidInputError: Nothing is recorded, and the base's config cannot be read or is of no kind that loraft knows.
    """
    if target.metadata.task is not None:
        return target.metadata.task
    config = load_any_config(target.model)
    return TASK_OF_GROUP["classifier" if is_classifier(config) else spec_of(config.model_type, FAMILIES).group]


def classes_of(target: ResolvedTarget) -> tuple[str, ...]:
    """The names of the classes in their order; none where the target is no classifier.

    An adapter that another tool wrote tells only how many there are: their names are then those of its base, where it
    has as many, or else `LABEL_0`, `LABEL_1` and so on, as transformers has it.

    Raises:
        InvalidInputError: The base's config cannot be read, or an adapter is damaged or lacks its head.
    """
    if not target.adapters:
        config = load_any_config(target.model)
        return class_names(config) if is_classifier(config) else ()
    adapter = target.adapters[0]
    if adapter.metadata.task is None or TASKS[adapter.metadata.task].generates:
        return ()
    return adapter.metadata.labels or _unnamed(adapter, target)


def _unnamed(adapter: AdapterTarget, target: ResolvedTarget) -> tuple[str, ...]:
    config = load_any_config(target.model)
    decides = spec_of(config.model_type, CLASSIFIERS).classifier[-1]
    whole = (
        tensor
        for key, tensor in read_adapter(adapter.folder).tensors.items()
        if key.startswith(f"base_model.model.{decides}.") and tensor.dim() > 1
    )
    count = min((len(tensor) for tensor in whole), default=0)
    if not count:
        raise AdapterError(
            f"it was trained to classify, and holds no {decides}",
            where=str(adapter.folder),
            remedy="Save it with modules_to_save, or classify with the tool that wrote it.",
        )
    named = class_names(config)
    return named if len(named) == count else tuple(f"LABEL_{number}" for number in range(count))

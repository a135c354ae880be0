"""`lora.start_from`: whether the adapter to go on from is the one that the config describes.

This module compares and tells every difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from loraft.adapters.adapter_files import AdapterFiles, read_adapter
from loraft.adapters.resolve_target import adapter_named
from loraft.adapters.targets import TargetModules
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError, Problem
from loraft.models.modules import is_within


def start_of(lora: LoraSection, targets: TargetModules, labels: Sequence[str] = ()) -> AdapterFiles | None:
    """The adapter of `lora.start_from`; None where an adapter begins anew.

    Args:
        lora: The config's section.
        targets: What the config adapts.
        labels: The classes of a classifier in their order; none for other tasks.

    Raises:
        AdapterError: It is damaged, or differs from what the config describes; every difference is told.
    """
    if lora.start_from is None:
        return None
    remedy = "Name an adapter, a run or a checkpoint."
    start = read_adapter(adapter_named(lora.start_from, {"key": "lora.start_from"}, remedy=remedy).folder)
    _refuse_another(start, targets, lora, labels)
    return start


def _refuse_another(start: AdapterFiles, targets: TargetModules, lora: LoraSection, labels: Sequence[str]) -> None:
    shape = start.shape
    problems = [
        *_modules(shape.ranks.keys(), targets.ranks.keys()),
        *_numbers("lora.r", shape.ranks, targets.ranks),
        *_numbers("lora.alpha", shape.alphas, targets.alphas),
        *_switch("lora.use_rslora", shape.use_rslora, lora.use_rslora),
        *_switch("lora.use_dora", shape.use_dora, lora.use_dora),
        *_whole(shape.saved, targets.saved),
        *_classes((start.record or {}).get("labels"), labels),
    ]
    if problems:
        message = "it is not the adapter that the config describes"
        raise AdapterError.several([*problems, Problem(message, str(start.folder), "lora.start_from")])


def _modules(there: Set[str], here: Set[str]) -> Iterable[Problem]:
    if here - there:
        yield Problem(f"the adapter has no {_listed(sorted(here - there))}", key="lora.target_modules")
    if there - here:
        yield Problem(f"only the adapter has {_listed(sorted(there - here))}", key="lora.target_modules")


def _numbers(key: str, there: Mapping[str, float], here: Mapping[str, float]) -> Iterable[Problem]:
    different = [name for name in here if name in there and there[name] != here[name]]
    if different:
        first = different[0]
        yield Problem(f"{there[first]:g} in the adapter, {here[first]:g} here ({_listed(different)})", key=key)


def _whole(there: Collection[str], here: Collection[str]) -> Iterable[Problem]:
    """Weights are saved by the leaf; a module that is trained whole may hold several."""
    extra = [leaf for leaf in there if not any(is_within(leaf, outer) for outer in here)]
    absent = [outer for outer in here if not any(is_within(leaf, outer) for leaf in there)]
    if absent:
        yield Problem(f"the adapter has no {_listed(sorted(absent))}", key="lora.modules_to_save")
    if extra:
        yield Problem(f"only the adapter has {_listed(sorted(extra))}", key="lora.modules_to_save")


def _classes(there: object, here: Sequence[str]) -> Iterable[Problem]:
    """What another tool wrote does not say which classes it knows."""
    if isinstance(there, list) and here and there != list(here):
        message = f"the adapter's classes are {_listed(list(map(str, there)))}; here they are {_listed(here)}"
        yield Problem(message, key="data.labels")


def _switch(key: str, there: bool, here: bool) -> Iterable[Problem]:
    if there != here:
        yield Problem(f"{str(there).lower()} in the adapter, {str(here).lower()} here", key=key)


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown

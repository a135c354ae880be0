"""The adapter that training goes on from: found, read, and compared with what the config describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from loraft.adapters.adapter_files import AdapterFiles, read_adapter
from loraft.adapters.resolve_target import adapter_named
from loraft.adapters.targets import TargetModules
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError, Problem
from loraft.figures import listed
from loraft.models.modules import is_within

SHOWN = 3
"""The most names that a sentence lists."""


def start_of(lora: LoraSection, targets: TargetModules, labels: Sequence[str] = ()) -> AdapterFiles | None:
    """The adapter of `lora.start_from`; None where an adapter begins anew.

    `targets` is what the config adapts, and `labels` are the classes of a classifier in their order.

    Raises:
        AdapterError: It is damaged, or differs from what the config describes; every difference is told.
    """
    if lora.start_from is None:
        return None
    remedy = "Name an adapter, a run or a checkpoint."
    start = read_adapter(adapter_named(lora.start_from, {"key": "lora.start_from"}, remedy=remedy).folder)
    if problems := list(_differences(start, targets, lora, labels)):
        message = "it is not the adapter that the config describes"
        raise AdapterError.several([*problems, Problem(message, str(start.folder), "lora.start_from")])
    return start


def _differences(
    start: AdapterFiles, targets: TargetModules, lora: LoraSection, labels: Sequence[str]
) -> Iterator[Problem]:
    ranks = {name: rank for name, rank in start.ranks.items() if name not in start.parameters}
    there, here = ranks.keys(), targets.ranks.keys()
    yield from _other_names("lora.target_modules", here - there, there - here)
    yield from _other_numbers("lora.r", ranks, targets.ranks)
    yield from _other_numbers("lora.alpha", start.alphas, targets.alphas)
    for key in ("use_rslora", "use_dora", "bias"):
        said, asked = getattr(start.config, key), getattr(lora, key)
        if said != asked:
            yield Problem(f"{str(said).lower()} in the adapter, {str(asked).lower()} here", key=f"lora.{key}")
    parameters = {name for names in start.parameters.values() for name in names}
    weights = {weight.name: weight.alpha for weight in targets.weights}
    yield from _other_names("lora.target_parameters", weights.keys() - parameters, parameters - weights.keys())
    yield from _other_numbers("lora.alpha", start.alphas, weights)
    yield from _other_rows(start, targets)
    # Weights are saved by the leaf; a module that is trained whole may hold several.
    absent = {outer for outer in targets.saved if not any(is_within(leaf, outer) for leaf in start.saved)}
    extra = {leaf for leaf in start.saved if not is_within(leaf, *targets.saved)}
    yield from _other_names("lora.modules_to_save", absent, extra)
    classes = (start.record or {}).get("labels")  # what another tool wrote does not say which classes it knows
    if isinstance(classes, list) and labels and classes != list(labels):
        message = (
            f"the adapter's classes are {listed(list(map(str, classes)), SHOWN)}; here they are {listed(labels, SHOWN)}"
        )
        yield Problem(message, key="data.labels")


def biases_of_b(start: AdapterFiles | None) -> dict[str, int]:
    """The biases of B that training goes on with, where the adapter of `lora.start_from` has any, and their sizes."""
    updates = start.updates if start is not None else {}
    return {f"{name}.lora_B.bias": len(parts["bias"]) for name, parts in updates.items() if "bias" in parts}


def _other_rows(start: AdapterFiles, targets: TargetModules) -> Iterator[Problem]:
    """The rows of tokens that the adapter trained by themselves, against those of the tokens that the config adds."""
    there = {name.removesuffix(".weight"): list(rows) for name, (rows, _) in start.tokens.items()}
    here = {name: list(rows) for name, rows in targets.rows.items()}
    if there != here:
        told = [", ".join(f"{rows} of {name}" for name, rows in sorted(each.items())) for each in (there, here)]
        message = f"the adapter trains the rows of tokens {told[0] or '(none)'}; here they are {told[1] or '(none)'}"
        yield Problem(message, key="model.add_tokens")


def _other_names(key: str, absent: Set[str], extra: Set[str]) -> Iterator[Problem]:
    if absent:
        yield Problem(f"the adapter has no {listed(sorted(absent), SHOWN)}", key=key)
    if extra:
        yield Problem(f"only the adapter has {listed(sorted(extra), SHOWN)}", key=key)


def _other_numbers(key: str, there: Mapping[str, float], here: Mapping[str, float]) -> Iterator[Problem]:
    different = [name for name in here if name in there and there[name] != here[name]]
    if different:
        first = different[0]
        yield Problem(f"{there[first]:g} in the adapter, {here[first]:g} here ({listed(different, SHOWN)})", key=key)

"""What an adapter_config.json declares: taken over where loraft honours it, refused where it would be ignored."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Literal

from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from pydantic_core import ErrorDetails

from loraft.adapters.rank_patterns import PLAIN, matching, values_for
from loraft.errors import AdapterError, Problem

Json = Mapping[str, object]

RECORDED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "runtime_config",
    }
)
"""Keys that say how an adapter was made or kept, and nothing of what it computes."""
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""The values of `init_lora_weights` that leave the base as it is."""


class _Declared(BaseModel):
    """The keys of adapter_config.json that loraft honours, with their types: the file may be anybody's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: Literal["LORA"]
    task_type: (
        Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"] | None
    ) = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    init_lora_weights: bool | str | None = True
    r: PositiveInt = 8
    lora_alpha: int | float = 8
    lora_dropout: float = 0.0
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = Field(default_factory=dict)
    fan_in_fan_out: bool = False


def recorded_lora(config: LoraConfig) -> dict[str, object]:
    """What `loraft.json` keeps of an adapter's config, so that a later change is found."""
    return {key: getattr(config, key) for key in RECORDED}


def parse_adapter_config(declared: Json, where: str) -> LoraConfig:
    """`adapter_config.json` as peft's type.

    Raises:
        AdapterError: If it is for another kind of adapter, or holds what loraft would have to ignore.
    """
    try:
        honoured = _Declared.model_validate(declared)
    except ValidationError as error:
        raise AdapterError.several(_problem(detail, where) for detail in error.errors()) from error
    _refuse_expressions(honoured, where)
    if honoured.init_lora_weights not in (*PLAIN_STARTS, None):
        remedy = "Let peft convert it to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)."
        message = f"an adapter that started as {honoured.init_lora_weights} changes its base"
        raise AdapterError(message, where=where, key="init_lora_weights", remedy=remedy)
    defaults = {field.name: field.default for field in fields(LoraConfig)}
    for key in declared.keys() - _Declared.model_fields.keys() - WITHOUT_EFFECT:
        if declared[key] and declared[key] != defaults.get(key):
            raise AdapterError("loraft does not load adapters that use this", where=where, key=key)
    return LoraConfig(**{**honoured.model_dump(), "init_lora_weights": True})


def _refuse_expressions(honoured: _Declared, where: str) -> None:
    """Peft reads expressions where others write names alone: in `modules_to_save` and `layers_pattern`."""
    given = honoured.layers_pattern or []
    layers = [given] if isinstance(given, str) else given
    for key, names in (("modules_to_save", honoured.modules_to_save or []), ("layers_pattern", layers)):
        for name in names:
            if not PLAIN.fullmatch(name):
                raise AdapterError(f"{name!r} is no name of modules", where=where, key=key)
    for key, patterns in (("rank_pattern", honoured.rank_pattern), ("alpha_pattern", honoured.alpha_pattern)):
        values_for((), patterns, None, where=where, key=key)


def resolved(config: LoraConfig, modules: Sequence[str], where: str | None) -> LoraConfig:
    """The config with the modules that its expressions match in the place of these, which peft matches without a bound.

    Args:
        config: What an adapter declares.
        modules: The names of all modules of its base.
        where: The file that declares it, for errors.

    Raises:
        AdapterError: An expression cannot be used, or that of the targets matches nothing.
    """
    found = copy.copy(config)
    keys = ("target_modules", "exclude_modules")
    hard = {key: value for key in keys if isinstance(value := getattr(config, key), str) and not PLAIN.fullmatch(value)}
    for key, names in zip(hard, matching(list(hard.values()), modules, "fullmatch"), strict=True):
        if isinstance(names, str) or not (names or key == "exclude_modules"):
            raise AdapterError(f"{hard[key]!r} {names or 'matches no module of the base'}", where=where, key=key)
        setattr(found, key, _any_of(names) if names else None)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns: Mapping[str, float | None] = getattr(config, key) or {}
        if not all(map(PLAIN.fullmatch, patterns)):
            by_value: dict[float | None, list[str]] = {}
            for name, value in values_for(modules, patterns, None, where=where, key=key).items():
                by_value.setdefault(value, []).append(name)
            setattr(found, key, {_any_of(names): value for value, names in by_value.items() if value is not None})
    return found


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names)))


def _problem(detail: ErrorDetails, where: str) -> Problem:
    key = ".".join(map(str, detail["loc"]))
    return Problem(f"{detail['input']!r} is not taken here: {detail['msg']}", where, key)


def refuse_changes(declared: Json, record: Json | None, where: str) -> None:
    """An alpha that was edited changes every answer and no shape: only the record tells."""
    recorded = record.get("lora") if record else None
    if not isinstance(recorded, Mapping):
        return
    problems = [
        Problem(f"it was trained with {recorded[key]}, and now says {declared.get(key)}", where, key)
        for key in RECORDED
        if key in recorded and recorded[key] != declared.get(key)
    ]
    if problems:
        raise AdapterError.several(problems)

"""What an adapter_config.json declares: taken over where loraft honours it, refused where it would be ignored.

Its regular expressions may be anybody's: they are matched in bounded time and memory.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Literal, TypeVar

from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from loraft.errors import AdapterError, Problem
from loraft.models.modules import nearest

Json = Mapping[str, object]
Value = TypeVar("Value")

ADAPTER_CONFIG = "adapter_config.json"
RECORDED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
"""What `loraft.json` keeps of an adapter's config, so that a later change is found."""
WITHOUT_EFFECT = {
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
"""Keys that say how an adapter was made or kept, and nothing of what it computes."""
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
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
    lora_alpha: int | FiniteFloat = 8
    lora_dropout: FiniteFloat = 0.0
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    alpha_pattern: dict[str, int | FiniteFloat] = Field(default_factory=dict)
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    trainable_token_indices: list[NonNegativeInt] | dict[str, list[NonNegativeInt]] | None = None
    ensure_weight_tying: bool = False


def parse_adapter_config(declared: Json, where: str) -> LoraConfig:
    """`adapter_config.json` as peft's type.

    Raises:
        AdapterError: If it is for another kind of adapter, or holds what loraft would have to ignore.
    """
    try:
        honoured = _Declared.model_validate(declared)
    except ValidationError as error:
        raise AdapterError.several(
            Problem(f"{each['input']!r} is not taken here: {each['msg']}", where, ".".join(map(str, each["loc"])))
            for each in error.errors()
        ) from error
    _refuse_expressions(honoured, where)
    if honoured.init_lora_weights not in (*PLAIN_STARTS, None):
        remedy = "Let peft convert it to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)."
        message = f"an adapter that started as {honoured.init_lora_weights} changes its base"
        raise AdapterError(message, where=where, key="init_lora_weights", remedy=remedy)
    defaults = {field.name: field.default for field in fields(LoraConfig)}
    for key in declared.keys() - _Declared.model_fields.keys() - WITHOUT_EFFECT:
        if declared[key] and declared[key] != defaults.get(key):
            raise AdapterError("loraft does not load adapters that use this", where=where, key=key)
    try:
        return LoraConfig(**{**honoured.model_dump(), "init_lora_weights": True})
    except (TypeError, ValueError) as error:  # keys that do not go together
        raise AdapterError(f"peft does not take it: {error}", where=where) from error


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


def resolved(
    config: LoraConfig, modules: Sequence[str], where: str | None, parameters: Sequence[str] = ()
) -> LoraConfig:
    """The config with the modules that its expressions match in the place of these, which peft matches without a bound.

    `modules` are the names of all modules of the base, `parameters` those of adapted parameters, and `where` is the
    file that declares the config.

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
            for name, value in values_for([*modules, *parameters], patterns, None, where=where, key=key).items():
                by_value.setdefault(value, []).append(name)
            setattr(found, key, {_any_of(names): value for value, names in by_value.items() if value is not None})
    return found


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names)))


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


def values_for(
    modules: Collection[str], patterns: Mapping[str, Value], default: Value, *, where: str | None, key: str
) -> dict[str, Value]:
    """The value of each module: that of the first pattern that matches it, or the default.

    Source: peft, `get_pattern_key`: a pattern is a regular expression for the last path parts of a module's name, and
    the first pattern that matches wins.

    Raises:
        AdapterError: A pattern is no regular expression, or takes too long to match; it is the `key` of `where`.
    """
    return _decided(modules, patterns, default, _matched(patterns, modules, where, key))[0]


def patterned(
    modules: Sequence[str], patterns: Mapping[str, Value], default: Value, key: str, problems: list[Problem]
) -> tuple[dict[str, Value], dict[str, int]]:
    """The value of each module, and how many modules each pattern decides; what is wrong is added to `problems`."""
    try:
        matched = _matched(patterns, modules, None, key)
    except AdapterError as error:
        problems += error.problems
        return dict.fromkeys(modules, default), {}
    values, counts = _decided(modules, patterns, default, matched)
    problems += [
        Problem(f"{pattern!r} is hidden: earlier patterns match all its modules", None, key)
        if matched[pattern]
        else Problem(f"{pattern!r} matches no adapted module", None, key, nearest(pattern, modules))
        for pattern, count in counts.items()
        if not count
    ]
    return values, counts


def _decided(
    modules: Collection[str], patterns: Mapping[str, Value], default: Value, matched: Mapping[str, set[str]]
) -> tuple[dict[str, Value], dict[str, int]]:
    """The value of each module, and how many modules each pattern decides: it does where no earlier one matches."""
    values, counts, left = dict.fromkeys(modules, default), {}, set(modules)
    for pattern, found in matched.items():
        counts[pattern] = len(found & left)
        values |= dict.fromkeys(found & left, patterns[pattern])
        left -= found
    return values, counts


def _matched(patterns: Collection[str], modules: Collection[str], where: str | None, key: str) -> dict[str, set[str]]:
    """The modules that each pattern matches."""
    at_the_end = {pattern: rf"(.*\.)?({pattern})$" for pattern in patterns}
    hard = [pattern for pattern in patterns if not PLAIN.fullmatch(pattern)]
    answers = dict(zip(hard, matching([at_the_end[pattern] for pattern in hard], list(modules), "match"), strict=True))
    if unusable := [Problem(f"{each!r} {why}", where, key) for each, why in answers.items() if isinstance(why, str)]:
        raise AdapterError.several(unusable)
    return {
        pattern: set(answers[pattern] if pattern in answers else filter(re.compile(end).match, modules))
        for pattern, end in at_the_end.items()
    }


PLAIN = re.compile(r"[\w.-]*")
"""A name, or an expression that costs no more than one: it needs no process."""
MOST_SECONDS = 5.0
MOST_BYTES = 512_000_000
CHILD = f"""
import json, re, resource, sys
try:
    resource.setrlimit(resource.RLIMIT_AS, ({MOST_BYTES}, {MOST_BYTES}))
except (ValueError, OSError):
    pass
method, expressions, names = json.load(sys.stdin)
for expression in expressions:
    try:
        match = getattr(re.compile(expression), method)
        answer = [place for place, name in enumerate(names) if match(name)]
    except re.error as error:
        answer = f"is not a regular expression: {{error}}"
    except (RecursionError, MemoryError, OverflowError):
        answer = "is not a regular expression that can be used: it is too large"
    print(json.dumps(answer), flush=True)
"""


def matching(
    expressions: Sequence[str], names: Sequence[str], method: Literal["match", "fullmatch"]
) -> list[set[str] | str]:
    """The names that each expression matches, by a method of `re`, or why it cannot be used."""
    if not expressions:
        return []
    asked = json.dumps([method, list(expressions), list(names)])
    child = [sys.executable, "-I", "-S", "-c", CHILD]
    try:
        ended = subprocess.run(child, input=asked.encode(), capture_output=True, timeout=MOST_SECONDS, check=False)
        told, why = ended.stdout, "takes too much memory to match"
    except subprocess.TimeoutExpired as error:
        told, why = error.stdout or b"", f"takes more than {MOST_SECONDS:.0f} s to match the names of modules"
    answers = [json.loads(line) for line in told.splitlines()]
    found: list[set[str] | str] = [
        answer if isinstance(answer, str) else {names[place] for place in answer} for answer in answers
    ]
    behind = len(expressions) - len(found) - 1
    return found if behind < 0 else [*found, why, *["stands behind one that could not be matched"] * behind]

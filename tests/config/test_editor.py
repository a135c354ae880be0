"""The JSON schema takes what loraft takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from loraft.config.editor import config_schema
from loraft.config.schema import RunConfig

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
SCHEMA = config_schema()
KINDS: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
    "integer": int,
}
KINDS["number"] = int | float


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is valid by the part of JSON schema that ours uses."""
    if "$ref" in schema:
        return fits(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema:
        return any(fits(value, branch) for branch in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    return isinstance(value, KINDS[schema["type"]]) and CHECKS[schema["type"]](value, schema)


def _number(value: float, schema: dict[str, Any]) -> bool:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum", value - 1), schema.get("exclusiveMaximum", value + 1)
    return not isinstance(value, bool) and low <= value <= high and above < value < below


def _text(value: str, schema: dict[str, Any]) -> bool:
    return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))


def _array(value: list[Any], schema: dict[str, Any]) -> bool:
    return len(value) >= schema.get("minItems", 0) and all(fits(one, schema["items"]) for one in value)


def _object(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    free = dict.fromkeys(set(value) - set(known), others)
    return (
        set(schema.get("required", ())) <= set(value)
        and (not free or isinstance(others, dict))
        and all(fits(inner, (known | free)[key]) for key, inner in value.items())
    )


CHECKS: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "integer": _number,
    "number": _number,
    "string": _text,
    "array": _array,
    "object": _object,
    "boolean": lambda value, schema: True,
    "null": lambda value, schema: True,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert fits(YAML(typ="safe", pure=True).load(path), SCHEMA)


@pytest.mark.parametrize("train", ["rows.jsonl", {"path": "x", "weight": 2}, ["a", {"path": "b"}]])
def test_every_shorthand_is_valid(train: object) -> None:
    for more in ({}, {"eval": train}, {"eval": 0.1}, {"eval": None}):
        assert fits({"model": {"name_or_path": "a"}, "data": {"train": train, **more}}, SCHEMA)
    lora = {"target_modules": ["q_proj"], "layers": [0, 3], "rank_pattern": {"q_proj": 4}}
    assert fits({"model": {"name_or_path": "a"}, "data": {"train": train}, "lora": lora}, SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"lora": {"r": 0}},
        {"lora": {"layers": "some"}},
        {"data": {"train": []}},
        {"data": {"train": "x", "eval": 5}},
        {"x": 1},
    ],
    ids=str,
)
def test_what_loraft_refuses_is_not_valid(wrong: dict[str, Any]) -> None:
    least: dict[str, Any] = {"model": {"name_or_path": "a"}, "data": {"train": "x"}} if wrong else {}
    assert not fits(least | wrong, SCHEMA)


def test_every_key_is_described_and_every_section_complete() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(SCHEMA["properties"]) == set(RunConfig.model_fields)
    for section in SCHEMA["$defs"].values():
        assert section["additionalProperties"] is False
        assert section["description"]
        assert all(key.get("description") for key in section["properties"].values())

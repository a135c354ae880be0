"""`loraft schema` prints a JSON schema that takes what loraft takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from loraft.config.schema import RunConfig

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
KINDS: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
    "integer": int,
}
KINDS["number"] = int | float


@cache
def printed() -> dict[str, Any]:
    """The document that the command prints."""
    done = subprocess.run([sys.executable, "-m", "loraft", "schema"], capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is valid by the part of JSON schema that ours uses."""
    if "$ref" in schema:
        return fits(value, printed()["$defs"][schema["$ref"].removeprefix("#/$defs/")])
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
    assert fits(YAML(typ="safe", pure=True).load(path), printed())


@pytest.mark.parametrize("train", ["rows.jsonl", {"path": "x", "weight": 2}, ["a", {"path": "b"}]])
def test_every_shorthand_is_valid(train: object) -> None:
    for more in ({}, {"eval": train}, {"eval": 0.1}, {"eval": None}):
        assert fits({"model": {"name_or_path": "a"}, "data": {"train": train, **more}}, printed())
    lora = {"target_modules": ["q_proj"], "layers": [0, 3], "rank_pattern": {"q_proj": 4}}
    assert fits({"model": {"name_or_path": "a"}, "data": {"train": train}, "lora": lora}, printed())


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
    assert not fits(least | wrong, printed())


def test_every_key_is_described_and_every_section_complete() -> None:
    document = printed()
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["title"] == "loraft config"
    assert document["additionalProperties"] is False
    assert set(document["properties"]) == set(RunConfig.model_fields)
    for section in document["$defs"].values():
        assert section["additionalProperties"] is False
        assert section["description"]
        assert all(key.get("description") for key in section["properties"].values())

"""Problems by the names that a command's own arguments have."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from loraft.cli.wording import in_words_of
from loraft.errors import ConfigError, DataError, ModelError, Problem

GONE = Problem("there is no such model", key="model.name_or_path", remedy="There is builtin:x.")
OF_A_CONFIG = Problem("is a run", "runs/a", "model.name_or_path", "Name its base, and this in lora.start_from: runs/a")


def told(problem: Problem, **parameters: object) -> Problem:
    (found,) = in_words_of(parameters, ModelError.several([problem]))
    return found


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"target": "x", "adapter": None, "base_model": None}, "TARGET"),
        ({"target": "a", "adapter": None, "base_model": "x"}, "--base-model"),
        ({"target": None, "adapter": ["x"], "base_model": None}, "--adapter"),
        ({"path": "c.yaml", "model": "x"}, "--model"),
    ],
)
def test_the_base_is_what_was_given(parameters: Mapping[str, object], place: str) -> None:
    assert told(GONE, **parameters) == Problem(GONE.message, place, None, GONE.remedy)


def test_a_command_with_a_config_keeps_its_keys() -> None:
    assert told(OF_A_CONFIG, config="c.yaml") == OF_A_CONFIG
    (found,) = in_words_of({"target": "c.yaml"}, ConfigError("must be above 0", where="c.yaml:3:4", key="model.dtype"))
    assert found.key == "model.dtype", "a config may be the TARGET"


def test_a_remedy_is_in_options_too_or_another_one() -> None:
    found = told(OF_A_CONFIG, target="a", base_model="runs/a")
    assert (found.where, found.key) == ("runs/a", "--base-model")
    assert found.remedy == "Give a base model: a Hub id, a folder, a .gguf file or builtin:NAME."
    nan = Problem("the scores are NaN", remedy="Try model.dtype=float32 or bfloat16.")
    assert told(nan, target="a", dtype=None).remedy == "Try --dtype float32 or bfloat16."
    assert told(nan, target="a").remedy is None


def test_a_rows_field_is_no_key_of_a_config() -> None:
    row, file = Problem("is empty", "rows.jsonl:3", "data"), Problem("is absent", "rows.jsonl", "data")
    parameters = {"target": "a", "data": "rows.jsonl"}
    assert in_words_of(parameters, DataError.several([row, file])) == (
        row,
        Problem("is absent", "rows.jsonl", "--data"),
    )

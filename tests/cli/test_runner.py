"""Problems by the names that a command's own arguments have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from typer.main import get_command

from loraft.cli.app import app
from loraft.cli.wording import COMMANDS, in_options, in_words_of, options
from loraft.errors import ConfigError, DataError, ModelError, Problem

GONE = Problem("there is no such model", key="model.name_or_path", remedy="There is builtin:x.")
OF_A_CONFIG = Problem("is a run", "runs/a", "model.name_or_path", "Name its base, and this in lora.start_from: runs/a")


def told(problem: Problem, **parameters: object) -> Problem:
    (found,) = in_words_of(parameters, ModelError.several([problem]))
    return found


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"target": "x", "adapters": None, "base_model": None}, "TARGET"),
        ({"target": "a", "adapters": None, "base_model": "x"}, "--base-model"),
        ({"target": None, "adapters": ["x"], "base_model": None}, "--adapter"),
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


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("Give a smaller `batch_size`.", "Give a smaller --batch-size."),
        ("`base_model=MODEL`, as `target`", "--base-model MODEL, as TARGET"),
        ("`base_model='a b'`", "--base-model 'a b'"),
        ("`adapters=['NAME=DIR']`", "--adapter NAME=DIR"),
        ("`columns={'prompt': THEIRS}`", "--columns prompt=THEIRS"),
        ("`loraft.predict('a', texts=[TEXT])`", "loraft predict a --text TEXT"),
        ("`loraft.predict('a', texts=[(TEXT, TEXT)])`", "loraft predict a --text TEXT --text-pair TEXT"),
        ("`overwrite=True` `verified=False`", "--overwrite --no-verify"),
        ("`loraft.train(loraft.load_config('my run/c.yaml'), resume=True)`", "loraft train 'my run/c.yaml' --resume"),
        ("`loraft.inspect_layers` of `overwrite_all`", "loraft inspect-layers of `overwrite_all`"),
        (
            "run `hf auth login`, `nothing=1`, `batch_size + 1` or ``",
            "run `hf auth login`, `nothing=1`, `batch_size + 1` or ``",
        ),
    ],
)
def test_what_is_said_of_python_is_said_of_the_command_line(said: str, typed: str) -> None:
    assert in_options(said) == typed


def test_a_parameter_is_an_option_and_the_place_where_nothing_else_is() -> None:
    assert told(Problem("is no number", parameter="batch_size")) == Problem("is no number", "--batch-size")
    assert told(Problem("is there", "o.jsonl", parameter="output")) == Problem("is there", "o.jsonl", "--output")
    (of_config,) = in_words_of({"config": "c.yaml"}, ConfigError("is wrong", key="lora.r", parameter="lora"))
    assert of_config == Problem("is wrong", "--lora", "lora.r")


def test_all_commands_call_a_parameter_by_one_name() -> None:
    called: dict[str, set[str]] = {}
    group: Any = get_command(app)
    for command in (group.get_command(None, name) for name in COMMANDS):
        for parameter in command.params:
            option = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
            called.setdefault(parameter.name, set()).add(option)
    called.pop("help", None)
    assert {name: {option} for name, option in options().items()} == called

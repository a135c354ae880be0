"""Expressions of somebody else's adapter: the modules that peft finds by them, in bounded time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from loraft.adapters import adapter_config as expressions
from loraft.adapters.adapter_config import matching, patterned, values_for
from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.inject import add_lora_layers
from loraft.errors import AdapterError, Problem
from tests.tiny import tiny_model

HANGS = r"(([a-z_.0-9])+)+!"
NAMES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qkvo"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "MOST_SECONDS", 1.0)


def test_expressions_match_as_in_re() -> None:
    assert matching([r".*\.1\..*(q|v)_proj", "none"], NAMES, "fullmatch") == [
        {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"}, set()
    ]  # fmt: skip
    assert matching([r"model\.layers\.2"], NAMES, "match") == [set(NAMES[8:])]


@pytest.mark.slow
def test_an_expression_that_takes_too_long_or_is_none_is_told_apart(impatient: None) -> None:
    found = matching(["(", "a+", HANGS, "b+"], NAMES, "fullmatch")
    assert isinstance(found[0], str)
    assert "regular expression" in found[0]
    assert found[1] == set()
    assert [isinstance(each, str) for each in found[2:]] == [True, True]
    assert isinstance(matching(["(" * 20_000 + ")" * 20_000], NAMES, "match")[0], str)


def adapter_config(folder: Path, **changes: Any) -> Path:
    """Somebody's adapter whose file has these keys."""
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", HANGS),
        ("exclude_modules", HANGS),
        ("rank_pattern", {HANGS: 2}),
        ("alpha_pattern", {HANGS: 2}),
        ("modules_to_save", [HANGS]),
        ("layers_pattern", [HANGS]),
    ],
)
def test_a_hostile_expression_of_an_adapter_is_refused_by_name_and_file(
    key: str, value: Any, tmp_path: Path, impatient: None
) -> None:
    folder = adapter_config(tmp_path, **{key: value})
    begun = time.perf_counter()
    with pytest.raises(AdapterError) as raised:
        add_lora_layers(tiny_model("llama"), read_adapter(folder).config, where=str(folder / "adapter_config.json"))
    assert time.perf_counter() - begun < 5
    (problem,) = raised.value.problems
    assert (problem.where, problem.key) == (str(folder / "adapter_config.json"), key)
    assert HANGS in problem.message


@pytest.mark.parametrize(
    "declared",
    [
        {"target_modules": r".*\.(0|2)\..*(q|v)_proj"},
        {"target_modules": r".*_proj", "exclude_modules": r".*mlp.*"},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {r"layers\.1\..*": 4, "q_proj": 8}},
        {
            "target_modules": r".*self_attn\.\w+",
            "alpha_pattern": {r".*\.0\..*": 3, r"(k|v)_proj": 0.5},
            "lora_alpha": 7,
        },
    ],
)
def test_peft_adapts_the_same_modules_with_the_same_ranks_and_scales(declared: dict[str, Any]) -> None:
    def adapted(model: nn.Module) -> dict[str, tuple[int, float]]:
        layers = {name: each for name, each in model.named_modules() if isinstance(each, LoraLayer)}
        return {name: (each.r["default"], each.scaling["default"]) for name, each in layers.items()}

    expected = adapted(get_peft_model(tiny_model("llama"), LoraConfig(r=2, **declared)))
    assert expected
    assert adapted(add_lora_layers(tiny_model("llama"), LoraConfig(r=2, **declared))) == expected


@pytest.mark.slow
def test_a_hostile_pattern_of_a_config_is_a_problem_of_its_key(impatient: None) -> None:
    problems: list[Problem] = []
    values, counts = patterned(NAMES, {"q_proj": 3, HANGS: 4}, 2, "lora.rank_pattern", problems)
    assert (set(values.values()), counts) == ({2}, {})
    assert [problem.key for problem in problems] == ["lora.rank_pattern"]
    with pytest.raises(AdapterError):
        values_for(NAMES, {HANGS: 4}, 2, where="file", key="rank_pattern")

"""`key=value` arguments are checked as the file is."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.config_file import load_config
from tests.config.written_files import LEAST, only, write


def test_overrides_are_read_and_checked_as_the_file_is(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "training: {max_steps: 5, learning_rate: 1e-3}\n")
    overrides = ["training.max_steps=null", "lora.target_modules=[q_proj,v_proj]", "training.learning_rate=2e-4"]
    config = load_config(path, [*overrides, "method=qlora", "lora.layers=last:4", "lora.rank_pattern.a.b=4"])
    assert (config.training.max_steps, config.training.learning_rate) == (None, 2e-4)
    assert (config.method, config.lora.target_modules, config.lora.layers) == ("qlora", ("q_proj", "v_proj"), "last:4")
    assert config.lora.rank_pattern == {"a.b": 4}


def test_the_later_of_two_counts(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, LEAST), ["lora.r=4", "lora.r=8"]).lora.r == 8


def test_an_override_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\ndata: {train: a}\nlora: {r: many}\n")
    config = load_config(path, ["model.name_or_path=a/b", "lora.r=8", "data.train={path: b, weight: 2}"])
    assert (config.model.name_or_path, config.lora.r, config.data.train[0].weight) == ("a/b", 8, 2.0)


def test_an_override_takes_over_value_and_places(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "lora: {layers: [1, -2, 3]}\n")
    assert load_config(path, ["lora.layers=[7]"]).lora.layers == (7,)
    problem = only(path, ["lora.layers=[7, 8, -1]"])
    assert (problem.where, problem.key) == ("override lora.layers=…", "lora.layers[2]")


@pytest.mark.parametrize("override", ["seed", "=3", "lora..r=3", "", "lora.=1"])
def test_what_is_no_key_and_value(tmp_path: Path, override: str) -> None:
    problem = only(write(tmp_path, LEAST), [override])
    assert problem.message == "is no key=value"
    assert "training.max_steps=100" in str(problem.remedy)


@pytest.mark.parametrize(
    ("override", "where", "key", "words"),
    [
        ("training.learning_rate=fast", "override training.learning_rate=…", "training.learning_rate", "above 0"),
        ("lora.target_modules=[q_proj,3]", "override lora.target_modules=…", "lora.target_modules[1]", "must be text"),
        ("lora.r=[", "override lora.r=…", "lora.r", "not valid YAML"),
        ("lora.r=&x 3", "override lora.r=…", "lora.r", "anchors and aliases"),
        ("lora.r=!!int 3", "override lora.r=…", "lora.r", "tags such as"),
        ("lora.r=\x1b", "override lora.r=…", "lora.r", "U+001B"),
        ("lora.r=\udc80", "override lora.r=…", "lora.r", "U+DC80"),
        ("lora={r: 1, r: 2}", "override lora=…", "lora", "given twice"),
        ("data.train.path=b", "override data.train.path=…", "data.train.path", "data.train is the text 'rows.jsonl'"),
        ("lora.rnk=3", "override lora.rnk=…", "lora.rnk", "no key of loraft"),
        ("lora" + ".r" * 2_000 + "=1", "override lora" + ".r" * 2_000 + "=…", None, "nested deeper than 20 levels"),
        ("model=null", "override model=…", "model", "empty section"),
    ],
)
def test_where_and_what_is_wrong(tmp_path: Path, override: str, where: str, key: str | None, words: str) -> None:
    problem = only(write(tmp_path, LEAST), [override])
    assert (problem.where, problem.key) == (where, key)
    assert words in problem.message

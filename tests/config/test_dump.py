"""A config that is written reads back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraft.config.config_file import dump_config, load_config
from loraft.config.schema import RunConfig
from loraft.config.sections import NO_NULL
from tests.config.written_files import LEAST, write

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
TRICKY = st.sampled_from(
    [
        *("~", "=", "no", "010", "2e-4", "null", "...", "---", "- a", "a: b", "a #b", "[a", "x,y", "builtin:tickets"),
        *(
            "1:30",
            "<<",
            "2001-01-01",
            "it's",
            '"',
            "\\n",
            "a\nb\n",
            " ",
            "\t",
            "@x",
            "!z",
            "&a",
            "*a",
            "\x85",
            "\u2028",
        ),
    ]
)
WORD = TEXT | TRICKY
WORDS = st.lists(WORD, max_size=3)
COLUMNS = st.dictionaries(WORD, WORD, max_size=2)
POSITIVE = st.floats(1e-300, 1e300) | st.integers(1, 10**20)
SOURCE = WORD | st.fixed_dictionaries(
    {"path": WORD}, optional={"split": st.none() | WORD, "weight": POSITIVE, "columns": COLUMNS}
)
SOURCES = SOURCE | st.lists(SOURCE, min_size=1, max_size=3)


def _means_null(value: object) -> bool:
    """Whether it is a word that nobody means as the name of a file, and that is refused."""
    return isinstance(value, str) and value.lower() in NO_NULL


VALUES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"name_or_path": WORD}, optional={"tokenizer": st.none() | WORD}),
        "data": st.fixed_dictionaries(
            {"train": SOURCES},
            optional={
                "eval": st.none() | st.floats(1e-9, 0.99) | SOURCES.filter(lambda value: not _means_null(value)),
                "columns": COLUMNS,
                "split": WORD,
            },
        ),
    },
    optional={
        "method": st.sampled_from(["lora", "qlora", "full"]),
        "quantization": st.fixed_dictionaries({}, optional={"double_quant": st.booleans()}),
        "lora": st.fixed_dictionaries(
            {},
            optional={
                "alpha": POSITIVE,
                "target_modules": st.just("mlp") | st.lists(WORD, min_size=1, max_size=3),
                "layers": st.sampled_from(["all", "4-11", "last:3"]) | st.lists(st.integers(0, 99), min_size=1),
                "rank_pattern": st.dictionaries(WORD, st.integers(1, 64), max_size=2),
            },
        ),
        "training": st.fixed_dictionaries(
            {}, optional={"learning_rate": st.just("auto") | POSITIVE, "sample_prompts": WORDS, "report_to": WORDS}
        ),
    },
)


@pytest.mark.slow
@given(values=VALUES)
@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_reads_back_equal(tmp_path: Path, values: dict[str, Any]) -> None:
    config = RunConfig.model_validate(values)
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("path", ["no", "FALSE", "None", "0.5", "null"])
def test_a_file_that_is_called_like_a_word_reads_back_equal(tmp_path: Path, path: str) -> None:
    data = {"train": [{"path": path}], "eval": [{"path": path}]}
    config = RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": data})
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_read_back_equal(tmp_path: Path, path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_the_numbers_of_a_schedule_are_written_as_they_were(tmp_path: Path) -> None:
    said = "{num_decay_steps: 0.2, decay_type: 1-sqrt}"
    overrides = ["training.lr_scheduler_type=warmup_stable_decay", f"training.lr_scheduler_kwargs={said}"]
    config = load_config(write(tmp_path, LEAST), overrides)
    written = dump_config(config)
    assert f"  lr_scheduler_kwargs: {said}" in written.splitlines()
    assert load_config(write(tmp_path, written)) == config


def test_it_is_readable(tmp_path: Path) -> None:
    overrides = [
        "data.eval={path: e.csv, split: test}",
        "training.learning_rate=1e-5",
        "lora.modules_to_save=[lm_head]",
    ]
    lines = dump_config(load_config(write(tmp_path, LEAST), overrides)).splitlines()
    assert lines[:6] == ["task: causal_lm", "method: lora", "seed: 0", "", "model:", "  name_or_path: a/b"]
    assert "  train: rows.jsonl" in lines
    assert "  eval: {path: e.csv, split: test}" in lines
    assert "  learning_rate: 1.0e-05" in lines
    assert "  modules_to_save: [lm_head]" in lines
    assert "  num_train_epochs: 3" in lines


def test_a_section_is_left_out_only_where_it_is_idle_and_says_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST)
    assert "quantization:" not in dump_config(load_config(path))
    assert "quantization:" in dump_config(load_config(path, ["quantization.type=fp4"]))
    assert "lora:" not in dump_config(load_config(path, ["method=full"]))
    assert "quantization:" in dump_config(load_config(path, ["method=qlora"]))

"""The config file is read with every problem at its place, and nothing in it can do harm."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loraft.config.config_file import MOST_BYTES, dump_config, load_config, load_lora, takes_path
from loraft.config.schema import RunConfig
from loraft.config.sections import LoraSection
from loraft.config.yaml_nodes import MOST_DEPTH
from loraft.errors import ConfigError
from tests.config.written_files import LEAST, only, problems, write

ROOT = Path(__file__).parent.parent.parent


def test_the_least_config_has_the_documented_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST))
    assert (config.method, config.lora.r, config.lora.alpha, config.data.max_length) == ("lora", 16, 32, 2048)
    assert [source.path for source in config.data.train] == ["rows.jsonl"]


def test_values_are_yaml_1_2(tmp_path: Path) -> None:
    text = LEAST + "lora: {r: 010, modules_to_save: [no, on]}\ntraining: {learning_rate: 2e-4, max_steps: 0x10}\n"
    config = load_config(write(tmp_path, text))
    assert (config.lora.r, config.training.learning_rate, config.training.max_steps) == (10, 2e-4, 16)
    assert config.lora.modules_to_save == ("no", "on")


@takes_path
def _named(config: RunConfig, *, name: str = "run") -> tuple[int, str]:
    return config.lora.r, name


def test_a_function_of_a_config_takes_its_file_and_its_runs_are_called_by_it(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "lora: {r: 4}\n")
    assert _named(path) == _named(config=str(path)) == (4, path.stem)
    assert _named(path, name="own") == (4, "own")
    assert _named(load_config(path)) == (4, "run")
    assert "Path" in inspect.signature(_named).parameters["config"].annotation


@pytest.mark.parametrize("config", [{"model": {"name_or_path": "m"}}, None, 3, b"run.yaml"])
def test_what_is_no_config_and_no_path_of_one_is_told_what_makes_one(config: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        _named(config)
    (problem,) = caught.value.problems
    assert problem.parameter == "config"
    assert "RunConfig.model_validate" in (problem.remedy or "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("# nothing but a comment\n", "is empty"),
        ("- a\n- b\n", "must hold a mapping of keys to values; found a list"),
        ("just words\n", "found the text 'just words'"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_a_file_that_holds_no_mapping(tmp_path: Path, content: str | bytes, words: str) -> None:
    problem = only(write(tmp_path, content))
    assert words in problem.message
    assert problem.where == "run.yaml"


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert only(tmp_path / "none.yaml").message == "there is no such file"
    assert "is a folder" in only(tmp_path).message
    (tmp_path / "config.yaml").write_text(LEAST)
    assert str(tmp_path / "config.yaml") in str(only(tmp_path).remedy), "the folder of a run"
    assert "cannot be read" in only(tmp_path / "a\0b").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST)
    path.chmod(0)
    assert "cannot be read: Permission denied" in only(path).message


@pytest.mark.parametrize(
    ("name", "text"), [("faq.csv", "a,b\n1,2\n"), ("a b.jsonl", '{"a": 1}\n'), ("c.json", '[{"a": 1}]')]
)
def test_a_file_of_rows_is_no_config(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert only(path).message == "is data, not a config"
    assert only(path).remedy == "Name it as data.train in a config: loraft init writes one."


def test_a_file_of_just_the_size_is_read_and_an_endless_one_refused(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "#" * (MOST_BYTES - len(LEAST)))
    assert path.stat().st_size == MOST_BYTES
    assert load_config(path).model.name_or_path == "a/b"
    assert "larger than 64 KiB" in only(Path("/dev/zero")).message


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, b"\xef\xbb\xbf" + LEAST.encode())).model.name_or_path == "a/b"


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "lora:\n  r: 0\n  alhpa: 3\nmodel:\n  dtype: int8\ntraining:\n  max_steps: many\ndata: {train: x}\n"
    found = problems(write(tmp_path, text), ["training.seed=1", "lora.dropout=2"])
    assert [(problem.where, problem.key) for problem in found] == [
        ("run.yaml:2:6", "lora.r"),
        ("run.yaml:3:3", "lora.alhpa"),
        ("run.yaml:4:1", "model.name_or_path"),
        ("run.yaml:5:10", "model.dtype"),
        ("run.yaml:7:14", "training.max_steps"),
        ("override training.seed=…", "training.seed"),
        ("override lora.dropout=…", "lora.dropout"),
    ]


def test_c45_duplicate_keys_name_both_places(tmp_path: Path) -> None:
    found = problems(write(tmp_path, LEAST + "lora:\n  r: 8\n  alpha: 8\n  r: 16\nlora: {r: 0}\n"))
    assert [(problem.where, problem.key, problem.message) for problem in found] == [
        ("run.yaml:6:3", "lora.r", "is given twice: first at line 4, column 3"),
        ("run.yaml:7:1", "lora", "is given twice: first at line 3, column 1"),
    ]


def test_a_key_that_is_empty_has_a_name_in_what_is_told_of_it(tmp_path: Path) -> None:
    found = problems(write(tmp_path, LEAST + '"": 1\n"": 2\nlora: {"": 1}\n'))
    assert [(problem.where, problem.key) for problem in found] == [
        ("run.yaml:3:1", '""'),
        ("run.yaml:4:1", '""'),
        ("run.yaml:5:8", 'lora.""'),
    ]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (LEAST + "lora: &x {r: 8}\n", "run.yaml:3:7", "anchors and aliases"),
        (LEAST + "lora: {layers: [*x]}\n", "run.yaml:3:17", "anchors and aliases"),
        (LEAST + "lora: !!python/object:os.system {}\n", "run.yaml:3:7", "tags such as"),
        (LEAST + "seed: !!int '3'\n", "run.yaml:3:7", "tags such as"),
        (LEAST + "? [a, b]\n: c\n", "run.yaml:3:3", "a key must be a plain word"),
        (LEAST + "'': c\n", "run.yaml:3:1", "is no key of loraft"),
        (LEAST + "---\nseed: 3\n", "run.yaml:3:1", "a second document"),
        (LEAST + "lora:\n\tr: 8\n", "run.yaml:4:1", "is not valid YAML"),
        (LEAST + "seed: 3: 4\n", "run.yaml:3:8", "mapping values are not allowed here"),
        (LEAST + "lora: [1, 2\n", "run.yaml:4:1", "is not valid YAML"),
        (LEAST + 'seed: "\\0"\n', "run.yaml:3:7", "no text"),
        (LEAST + 'seed: "\\ud800"\n', "run.yaml:3:7", "no text"),
        (LEAST + "seed: a\0b\n", "run.yaml:3:8", "U+0000"),
        ("a: b\nc:\x1b[31m", "run.yaml:2:3", "holds the character U+001B"),
        (LEAST.encode() + b"seed: \xff\n", "run.yaml:3", "not valid UTF-8 (byte 0xff)"),
        (LEAST.encode("utf-16"), "run.yaml:1", "not valid UTF-8"),
        ("# " + "x" * 64 * 1024, "run.yaml", "larger than 64 KiB"),
        (LEAST + "lora: {target_modules: [" + "a, " * 10_000 + "a]}\n", "run.yaml:3:29986", "more than 10,000 values"),
        (LEAST + "lora: " + "[" * 21 + "]" * 21 + "\n", "run.yaml:3:26", f"deeper than {MOST_DEPTH} levels"),
    ],
)
def test_c45_what_yaml_allows_and_a_config_does_not(tmp_path: Path, text: str | bytes, where: str, words: str) -> None:
    first = problems(write(tmp_path, text))[0]
    assert words in first.message
    assert first.where == where


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 60_000,
        "{a: " * 15_000,
        "- " * 30_000,
        "? " * 30_000,
        "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [{'*a, ' * 9}*a]\n" for n in range(900)),
        "&a [*a]\n",
        "".join(f"k{n}: {n}\n" for n in range(6_000)),
        "lora: {target_modules: [" + "1, " * 20_000 + "1]}",
        "a: 1\n" * 10_000,
        "seed: " + "9" * 60_000,
        "seed: 0x" + "f" * 60_000,
        "training: {learning_rate: 1e" + "9" * 400 + ", max_steps: " + "9" * 4_000 + "}",
    ],
    ids=lambda bomb: bomb[:12],
)
def test_c45_bombs_are_refused_within_a_second(tmp_path: Path, bomb: str) -> None:
    path = write(tmp_path, bomb)
    began = time.process_time()
    found = problems(path)
    assert time.process_time() - began < 1
    assert 0 < len(found) <= 101


TOKEN = "hf_" + "canary" * 5


def test_c44_a_token_in_the_file_or_an_override_is_not_repeated(tmp_path: Path) -> None:
    text = LEAST + "hub_token: hf_canary\ntraining: {wandb_api_key: hf_canary, hub_tokn: hf_canary}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), ["token=hf_canary", "data.password=hf_canary"])
    assert len(caught.value.problems) == 5
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        (f"training: {{run_name: {TOKEN}}}\n", "run.yaml:3:22", "training.run_name"),
        (f"training: {{max_steps: {TOKEN}}}\n", "run.yaml:3:23", "training.max_steps"),
        (f"lora: {{rank_pattern: {{{TOKEN}: 8}}}}\n", "run.yaml:3:22", "lora.rank_pattern"),
        (f"training: {{sample_prompts: [x, say {TOKEN}]}}\n", "run.yaml:3:32", "training.sample_prompts[1]"),
    ],
)
def test_c44_a_secret_in_a_value_is_refused_and_not_repeated(tmp_path: Path, text: str, where: str, key: str) -> None:
    (problem,) = problems(write(tmp_path, LEAST + text))
    assert (problem.where, problem.key) == (where, key)
    assert "a token of Hugging Face" in problem.message
    assert TOKEN not in str(problem)


@pytest.mark.parametrize("override", [TOKEN, f"{TOKEN}=1", f"training.{TOKEN}=1", f"training.run_name=!{TOKEN} x"])
def test_c44_a_secret_in_a_key_or_a_tag_is_not_repeated(tmp_path: Path, override: str) -> None:
    for text, overrides in ((LEAST, [override]), (f"{LEAST}{TOKEN}: 1\n{TOKEN}: !{TOKEN} 2\n", [])):
        told = problems(write(tmp_path, text), overrides)
        assert told
        assert TOKEN not in str([str(problem) for problem in told])


def test_c44_so_is_one_that_the_environment_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "like-no-other-1234")
    (problem,) = problems(write(tmp_path, LEAST), ["training.run_name=like-no-other-1234"])
    assert (problem.where, problem.key) == ("override training.run_name=…", "training.run_name")
    assert "the value of MY_API_KEY" in problem.message


def test_c44_no_key_takes_a_secret() -> None:
    keys = str(RunConfig.model_json_schema()["$defs"].keys()) + str(
        [list(definition["properties"]) for definition in RunConfig.model_json_schema()["$defs"].values()]
    )
    assert not [word for word in ("token'", "secret", "password", "api_key") if word in keys]


def test_writing_makes_a_file_that_loads_equal(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST), ["lora.layers=last:4", "data.eval=null"])
    (tmp_path / "resolved.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "resolved.yaml") == config


def test_reading_is_light() -> None:
    code = (
        "import sys, loraft.config.config_file; print(*sorted({'torch', 'rich', 'typer', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("", {}),
        ("r=8", {"r": 8}),
        ("r=8, target_modules=attention ,layers=last:4", {"r": 8, "target_modules": "attention", "layers": "last:4"}),
        ("target_modules=[q_proj,v_proj],r=2", {"target_modules": ["q_proj", "v_proj"], "r": 2}),
        ("layers=[0,5],use_dora=true,alpha=1.5", {"layers": [0, 5], "use_dora": True, "alpha": 1.5}),
        ("rank_pattern={q_proj: 4, v_proj: 2},r=1", {"rank_pattern": {"q_proj": 4, "v_proj": 2}, "r": 1}),
    ],
)
def test_a_lora_section_in_one_line(text: str, section: dict[str, object]) -> None:
    assert load_lora(text) == LoraSection.model_validate(section)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("r", "'r' is no key=value"),
        ("r=8,r=0", "lora.r: must be"),
        ("lora_alpha=8", "Write lora.alpha: 8"),
        ("target_modules=[q_proj", "is not valid YAML"),
        ("target_modules=q_proj", "or a list of module names like [q_proj, v_proj]"),
        ("r=1,alpha=-1", "lora.alpha: must be"),
    ],
)
def test_a_lora_section_in_one_line_is_checked_like_a_file(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_lora(text)
    assert words in str(caught.value)
    assert all((problem.where, problem.parameter) == (None, "lora") for problem in caught.value.problems)

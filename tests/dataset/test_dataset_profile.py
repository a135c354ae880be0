"""What a file of rows holds; `tests/cli/test_init_command.py` shows what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraft.config.choices import TaskName
from loraft.config.sections import DataSource
from loraft.dataset.dataset_profile import profile_dataset


def write(path: Path, rows: list[dict[str, Any]]) -> DataSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


def test_columns_inside_of_objects_are_measured_too(tmp_path: Path) -> None:
    flat = write(
        tmp_path / "flat.jsonl", [{"prompt": "why? " * 50, "completion": "so"}, {"prompt": "a", "completion": "b"}]
    )
    inside = write(
        tmp_path / "inside.jsonl", [{"all": json.loads(line)} for line in Path(flat.path).read_text().splitlines()]
    )
    columns = {"prompt": "all.prompt", "completion": "all.completion"}
    expected, found = profile_dataset(flat), profile_dataset(inside.model_copy(update={"columns": columns}))
    assert (found.longest_tokens, found.run_together) == (expected.longest_tokens, expected.run_together)
    assert (expected.longest_tokens > 250, expected.run_together) == (True, 1)


def test_the_languages_of_translations_that_are_json_text(tmp_path: Path) -> None:
    """As CSV files keep them; a row that has none does not hide those of the others."""
    texts = [json.dumps({"en": "hello", "fr": "bonjour"}), "none", json.dumps({"en": "yes", "fr": "oui"})]
    found = profile_dataset(write(tmp_path / "a.jsonl", [{"translation": text} for text in texts]))
    assert (found.fit.task, found.languages, found.rows, found.unusable) == ("seq2seq_lm", ("en", "fr"), 2, 1)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ((), ("seq2seq_lm", "translation", {"source": "dialogue", "target": "summary"})),
        (("causal_lm",), ("causal_lm", "alpaca", {"instruction": "dialogue", "output": "summary"})),
    ],
)
def test_a_text_and_its_summary_are_both_learned(
    tmp_path: Path, tasks: tuple[TaskName, ...], expected: tuple[str, str, dict[str, str]]
) -> None:
    rows = [{"id": "1", "dialogue": "A: late?\r\nB: yes", "summary": "B is late."}]
    fit = profile_dataset(write(tmp_path / "a.jsonl", rows), tasks=tasks).fit
    assert (fit.task, fit.format, fit.columns) == expected


def test_columns_that_name_languages_say_which_is_translated(tmp_path: Path) -> None:
    rows = [{"translation": {"en": "hello", "fr": "bonjour"}, "title": "a"}]
    source = write(tmp_path / "a.jsonl", rows)
    for names, languages in [
        ({"source": "translation.fr", "target": "translation.en"}, ("fr", "en")),
        ({"source": "translation.fr", "target": "title"}, ()),
    ]:
        assert profile_dataset(source.model_copy(update={"columns": names})).languages == languages


@pytest.mark.parametrize("answered", [{"chosen": "Me.", "rejected": "You."}, {"completion": "Me.", "label": True}])
def test_an_answer_to_compare_that_touches_its_prompt_is_counted(tmp_path: Path, answered: dict[str, Any]) -> None:
    rows = [{"prompt": prompt, **answered} for prompt in ("Who?", "Who? ", "Who?\n")]
    assert profile_dataset(write(tmp_path / "a.jsonl", rows), tasks=["preference"]).run_together == 1
    turns = write(tmp_path / "b.jsonl", [{**row, "system": "be brief"} for row in rows])
    assert profile_dataset(turns, tasks=["preference"]).run_together == 0


def test_what_objects_and_turns_hold_besides_is_not_read(tmp_path: Path) -> None:
    """As in the pairs of OpenAI's preference training, whose tools lie beside the prompt."""
    said = {"role": "assistant", "content": "b", "audio": {"id": "1"}}
    held = {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}], "store": False}
    rows = [{"input": held, "preferred_output": [said], "non_preferred_output": [{**said, "audio": None}], "id": 1}]
    columns = {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    source = write(tmp_path / "a.jsonl", rows)
    found = profile_dataset(source.model_copy(update={"columns": columns}))
    assert found.unread == ("id", "input.tools", "preferred_output[].audio")
    with_tools = profile_dataset(source.model_copy(update={"columns": {**columns, "tools": "input.tools"}}))
    assert with_tools.unread == ("id", "preferred_output[].audio")
    assert with_tools.read == ("prompt", "tools", "chosen", "rejected")

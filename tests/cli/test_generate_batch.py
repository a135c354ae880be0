"""`loraft generate` for many prompts: what goes where."""

from __future__ import annotations

import json
from pathlib import Path

from loraft.inference.requests import GenerationRequest, ModelRequest
from tests.cli import fake_api
from tests.cli.conftest import Loraft


def test_several_prompts_are_answered_together(loraft: Loraft) -> None:
    result = loraft("generate", "any", "-p", "One?", "-p", "-", "--batch-size", "2", stdin="Two\nlines?\n")
    assert result.exit_code == 0
    assert result.stdout == "> One?\nParis.\x1b[2J\n\n> Two\nlines?\nParis.\x1b[2J\n"
    assert "note: the tokenizer has no padding token" in result.stderr
    assert fake_api.CALLS[-1]["prompts"] == ["One?", "Two\nlines?"]
    assert fake_api.CALLS[-1]["batch_size"] == 2


def test_json_of_several_prompts_is_a_list(loraft: Loraft) -> None:
    documents = json.loads(loraft("generate", "any", "-p", "One?", "-p", "Two?", "--json").stdout)
    assert [document["prompt"] for document in documents] == ["One?", "Two?"]
    assert documents[0]["token_ids"] == [1, 2, 3]


def test_a_file_of_prompts(loraft: Loraft) -> None:
    words = ["generate", "any", "--input", "p.jsonl", "--output", "o.jsonl", "--overwrite", "--temperature", "0"]
    result = loraft(*words)
    assert result.exit_code == 0
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert {"rows 300", "there before 100", "answers cut 20 at the limit (--max-new-tokens)"} <= set(rows)
    assert json.loads(loraft(*words, "--json").stdout) == {"output": "o.jsonl", "rows": 300, "held": 100, "cut": 20}
    assert fake_api.CALLS[-1] == {
        "model": ModelRequest("any"),
        "prompts": Path("p.jsonl"),
        "prompt_column": None,
        "output": Path("o.jsonl"),
        "options": GenerationRequest(temperature=0.0, seed=0),
        "batch_size": 8,
        "overwrite": True,
    }


def test_bad_rows_are_named_with_line_and_field(loraft: Loraft) -> None:
    result = loraft("generate", "any", "--input", "bad.jsonl", "--output", "o.jsonl")
    assert result.exit_code == 2
    assert "bad.jsonl:3 prompt: is empty" in result.stderr
    assert "bad.jsonl:9: is not JSON" in result.stderr


def test_voices_beside_one_another(loraft: Loraft) -> None:
    result = loraft("generate", "any", "--compare", "-p", "One?", "-p", "Two?")
    lines = [line.split() for line in result.stdout.splitlines() if line.strip(" ─")]
    answers = ["Paris.␛[2J"] * 3
    ends = ["3", "tokens,", "ended"] * 3
    assert lines == [["One?"], ["base", "one", "two"], answers, ends, ["Two?"], ["base", "one", "two"], answers, ends]


def test_many_voices_stand_below_one_another(loraft: Loraft) -> None:
    adapters = [word for name in "abcd" for word in ("--adapter", name)]
    result = loraft("generate", "any", *adapters, "--compare", "-p", "One?")
    firsts = [line.split()[0] for line in result.stdout.splitlines() if "Paris" in line]
    assert firsts == ["base", "a", "b", "c", "d"]


def test_json_of_a_comparison_has_each_voice_by_its_name(loraft: Loraft) -> None:
    document = json.loads(loraft("generate", "any", "--compare", "-p", "One?", "--json").stdout)
    assert document["prompt"] == "One?"
    assert list(document["completions"]) == ["base", "one", "two"]
    assert document["completions"]["one"]["completion"] == "Paris.\x1b[2J"
    two = json.loads(loraft("generate", "any", "--compare", "-p", "One?", "-p", "Two?", "--json").stdout)
    assert [each["prompt"] for each in two] == ["One?", "Two?"]

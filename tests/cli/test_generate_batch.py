"""`loraft generate` for many prompts: what goes where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loraft.inference.requests import GenerationRequest, ModelRequest
from tests.cli.conftest import ANSWER, Calls, Loraft

SHOWN = ANSWER.replace("\x1b", "␛")
pytestmark = pytest.mark.usefixtures("place")


def test_several_prompts_are_answered_together(loraft: Loraft, calls: Calls) -> None:
    result = loraft("generate", "run", "-p", "One?", "-p", "-", "--batch-size", "2", stdin="Two?\n")
    assert result.exit_code == 0
    assert result.stdout == f"> One?\n{ANSWER}\n\n> Two?\n{ANSWER}\n"
    assert result.stderr.startswith("note: device cpu")
    loraft("generate", "run", "-p", "One?", "-p", "-", "--batch-size", "2", stdin="Two\nlines?\n")
    assert calls[-1]["prompts"] == ["One?", "Two\nlines?"]
    assert calls[-1]["batch_size"] == 2


def test_json_of_several_prompts_is_a_list(loraft: Loraft) -> None:
    documents = json.loads(loraft("generate", "run", "-p", "One?", "-p", "Two?", "--json").stdout)
    assert ["One?" in documents[0]["prompt"], "Two?" in documents[1]["prompt"]] == [True, True]
    assert [document["completion"] for document in documents] == [ANSWER, ANSWER]
    assert len(documents[0]["token_ids"]) == len(documents[0]["logprobs"]) == 9


@pytest.mark.slow
def test_a_file_of_prompts(loraft: Loraft, calls: Calls) -> None:
    Path("p.jsonl").write_text('{"prompt": "Capital?"}\n{"prompt": "Where?"}\n{"prompt": "One?"}\n')
    words = ["generate", "run", "--input", "p.jsonl", "--output", "o.jsonl", "--temperature", "0"]
    short = [*words, "--max-new-tokens", "2"]
    result = loraft(*short)
    assert result.exit_code == 0
    assert "rows 3" in rows_of(result.stdout)
    assert "answers cut 3 at the limit (--max-new-tokens)" in rows_of(result.stdout)
    kept = Path("o.jsonl").read_text().splitlines()
    Path("o.jsonl").write_text("".join(line + "\n" for line in kept[:2]))
    assert "there before 2" in rows_of(loraft(*short).stdout)
    document = json.loads(loraft(*words, "--overwrite", "--json").stdout)
    assert {"output": "o.jsonl", "rows": 3, "cut": 0}.items() <= document.items()
    assert [json.loads(line)["completion"] for line in Path("o.jsonl").read_text().splitlines()] == [ANSWER] * 3
    assert calls[-1] == {
        "model": ModelRequest("run"),
        "prompts": Path("p.jsonl"),
        "prompt_column": None,
        "output": Path("o.jsonl"),
        "options": GenerationRequest(temperature=0.0, seed=0),
        "batch_size": 8,
        "overwrite": True,
    }


def rows_of(text: str) -> set[str]:
    """The lines of a table, with one space between two cells."""
    return {" ".join(line.split()) for line in text.splitlines()}


def test_bad_rows_are_named_with_line_and_field(loraft: Loraft) -> None:
    Path("bad.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": null}\n[/red]\n')
    result = loraft("generate", "run", "--input", "bad.jsonl", "--output", "o.jsonl", "--json")
    assert result.exit_code == 2
    problems = json.loads(result.stdout)["problems"]
    assert {(problem["where"], problem["key"]) for problem in problems} == {
        ("bad.jsonl:3", "prompt"),
        ("bad.jsonl:4", None),
    }
    for place in ("bad.jsonl:3 prompt: ", "bad.jsonl:4: is not JSON"):
        assert place in result.stderr


@pytest.mark.slow
def test_voices_beside_one_another(loraft: Loraft) -> None:
    two = ["--adapter", "one=run/adapter", "--adapter", "two=run/adapter"]
    result = loraft("generate", *two, "--compare", "-p", "One?", "-p", "Two?")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.strip(" ─")]
    titles = [at for at, line in enumerate(lines) if line == ["base", "one", "two"]]
    assert [lines[at - 1] for at in titles] == [["One?"], ["Two?"]]
    for at in titles:
        assert lines[at + 1][-2:] == [SHOWN, SHOWN]
    ends = ["9", "tokens,", "ended"] * 2
    assert len([line for line in lines if line[-6:] == ends]) == 2


@pytest.mark.slow
def test_many_voices_stand_below_one_another(loraft: Loraft) -> None:
    for name in "abcd":
        shutil.copytree("run/adapter", f"adapters/{name}")
    adapters = [word for name in "abcd" for word in ("--adapter", f"{name}=adapters/{name}")]
    result = loraft("generate", *adapters, "--compare", "-p", "One?", "--max-new-tokens", "9")
    assert result.exit_code == 0, result.stderr
    firsts = [line.split()[0] for line in result.stdout.splitlines() if SHOWN in line]
    assert firsts == ["a", "b", "c", "d"]
    assert [line.split()[0] for line in result.stdout.splitlines() if line.strip(" ─")][1] == "base"


@pytest.mark.slow
def test_json_of_a_comparison_has_each_voice_by_its_name(loraft: Loraft) -> None:
    words = ["generate", "run", "--compare", "--max-new-tokens", "9", "--json"]
    document = json.loads(loraft(*words, "-p", "One?").stdout)
    assert document["prompt"] == "One?"
    assert list(document["completions"]) == ["base", "default"]
    assert document["completions"]["default"]["completion"] == ANSWER
    assert document["completions"]["base"]["completion"] != ANSWER
    two = json.loads(loraft(*words, "-p", "One?", "-p", "Two?").stdout)
    assert [each["prompt"] for each in two] == ["One?", "Two?"]

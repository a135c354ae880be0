"""`loraft generate`: what goes where, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from loraft.inference.requests import GenerationRequest, ModelRequest
from tests.cli import fake_api
from tests.cli.conftest import Loraft

ROOT = Path(__file__).parents[2]


def test_the_answer_and_nothing_else_is_on_standard_output(loraft: Loraft) -> None:
    result = loraft("generate", "builtin:any", "-p", "Capital?")
    assert result.exit_code == 0
    assert result.stdout == "Paris.\x1b[2J\n", "into a pipe the text goes as it is"
    assert "note: the adapter was trained on another revision of its base" in result.stderr
    assert "3 tokens · prompt read in 42 ms · 22.2 tokens/s · the model ended its answer" in result.stderr


@pytest.mark.parametrize(
    ("by", "text", "said"),
    [("limit", None, "cut at the limit (--max-new-tokens)"), ("stop_text", "\n\n", r"ended at the stop text '\n\n'")],
)
def test_what_ended_an_answer_is_said(
    loraft: Loraft, monkeypatch: pytest.MonkeyPatch, by: str, text: str | None, said: str
) -> None:
    monkeypatch.setattr(fake_api.Stream, "ending", SimpleNamespace(by=by, text=text))
    assert said in loraft("generate", "builtin:any", "-p", "Capital?").stderr


def test_options_left_out_are_left_to_what_was_saved(loraft: Loraft) -> None:
    loraft("generate", "--adapter", "run/adapter", "--prompt", "Hi", "--top-k", "5")
    assert fake_api.CALLS[-1] == {
        "model": ModelRequest(None, ["run/adapter"]),
        "prompt": "Hi",
        "options": GenerationRequest(top_k=5, seed=0),
        "trace": False,
        "layers": False,
        "use_cache": True,
    }


def test_every_option_arrives(loraft: Loraft) -> None:
    words = "--system S --max-new-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 5 --min-p 0.1 --repetition-penalty 1.1"
    loraft("generate", "any", "-p", "Hi", *words.split(), "--stop", "a b", "--stop", "c", "--seed", "3")
    assert fake_api.CALLS[-1]["options"] == GenerationRequest("S", 9, 0.5, 0.9, 5, 3, 0.1, 1.1, ("a b", "c"))
    loraft("generate", "any", "-p", "Hi", "--num-beams", "4")
    assert fake_api.CALLS[-1]["options"] == GenerationRequest(seed=0, num_beams=4)


def test_json_is_the_completion(loraft: Loraft) -> None:
    document = json.loads(loraft("generate", "any", "-p", "Hi", "--json").stdout)
    assert list(document) == [
        "prompt",
        "completion",
        "token_ids",
        "logprobs",
        "finish_reason",
        "prefill_ms",
        "decode_tokens_per_second",
    ]


@pytest.mark.parametrize(("stdin", "prompt"), [("two\nlines\n", "two\nlines"), ("", ""), ("é\n\n", "é\n")])
def test_a_dash_reads_standard_input(loraft: Loraft, stdin: str, prompt: str) -> None:
    loraft("generate", "any", "-p", "-", stdin=stdin)
    assert fake_api.CALLS[-1]["prompt"] == prompt


def test_a_prompt_that_is_no_text_is_refused(loraft: Loraft) -> None:
    for result in (loraft("generate", "any", "-p", "-", stdin=b"\xff\xfe"), loraft("generate", "any", "-p", "\udcff")):
        assert result.exit_code == 2
        assert "--prompt: the prompt is not UTF-8 text" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "Hi"],
        ["any"],
        ["any", "-p", "Hi", "--input", "p.jsonl", "--output", "o.jsonl"],
        ["any", "--input", "p.jsonl"],
        ["any", "-p", "Hi", "--output", "o.jsonl"],
        ["any", "--input", "p.jsonl", "--output", "o.jsonl", "--compare"],
        ["any", "-p", "Hi", "--overwrite"],
        ["any", "-p", "-", "-p", "-"],
        ["any", "-p", "Hi", "-p", "Ho", "--batch-size", "0"],
        ["any", "-p", "Hi", "--dtype", "float8"],
        ["any", "-p", "Hi", "--top-p", "0"],
        ["any", "-p", "Hi", "--top-p", "1.1"],
        ["any", "-p", "Hi", "--top-p", "nan"],
        ["any", "-p", "Hi", "--temperature", "-1"],
        ["any", "-p", "Hi", "--temperature", "nan"],
        ["any", "-p", "Hi", "--temperature", "inf"],
        ["any", "-p", "Hi", "--top-k", "0"],
        ["any", "-p", "Hi", "--max-new-tokens", "0"],
        ["any", "-p", "Hi", "--min-p", "1.5"],
        ["any", "-p", "Hi", "--repetition-penalty", "0"],
        ["any", "-p", "Hi", "--repetition-penalty", "inf"],
        ["any", "-p", "Hi", "--stop", ""],
        ["any", "-p", "Hi", "--num-beams", "0"],
        ["any", "-p", "Hi", "--layers"],
    ],
)
def test_what_cannot_be_is_refused(loraft: Loraft, arguments: list[str]) -> None:
    result = loraft("generate", *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert fake_api.CALLS == []


def test_a_reader_who_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = fake_api.command_line("generate", "any", "-p", "Hi")
    done = subprocess.run(
        words, stdout=writer, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    os.close(writer)
    assert done.returncode == 141
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr

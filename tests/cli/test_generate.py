"""`loraft generate`: what goes where, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from loraft.inference.requests import GenerationRequest, ModelRequest
from tests.cli.conftest import ANSWER, Calls, Loraft
from tests.cli.running import started
from tests.words import Wording


@pytest.mark.usefixtures("place")
def test_the_answer_and_nothing_else_is_on_standard_output(loraft: Loraft) -> None:
    result = loraft("generate", "run", "-p", "Capital?")
    assert result.exit_code == 0
    assert result.stdout == f"{ANSWER}\n", "into a pipe the text goes as it is"
    note, ended = result.stderr.splitlines()
    assert note.startswith("note: device cpu")
    tokens, read, rate, why = ended.split(" · ")
    assert (tokens, why) == ("9 tokens", "the model ended its answer")
    assert read.startswith("prompt read in ")
    assert rate.endswith(" tokens/s")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-new-tokens", "2"], "cut at the limit (--max-new-tokens)"),
        (["--stop", "is."], "ended at the stop text 'is.'"),
    ],
)
def test_what_ended_an_answer_is_said(loraft: Loraft, options: list[str], said: str) -> None:
    result = loraft("generate", "run", "-p", "Capital?", *options)
    assert said in result.stderr
    assert ANSWER.startswith(result.stdout[:-1])


@pytest.mark.usefixtures("place")
def test_options_left_out_are_left_to_what_was_saved(loraft: Loraft, calls: Calls) -> None:
    loraft("generate", "--adapter", "run/adapter", "--prompt", "Hi", "--top-k", "5")
    assert calls == [
        {
            "model": ModelRequest(None, ["run/adapter"]),
            "prompt": "Hi",
            "options": GenerationRequest(top_k=5, seed=0),
            "trace": False,
            "layers": False,
            "use_cache": True,
        }
    ]


@pytest.mark.usefixtures("place")
def test_every_option_arrives(loraft: Loraft, calls: Calls) -> None:
    words = "--system S --max-new-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 5 --min-p 0.1 --repetition-penalty 1.1"
    done = loraft("generate", "run", "-p", "Hi", *words.split(), "--stop", "a b", "--stop", "c", "--seed", "3")
    assert done.exit_code == 0
    assert calls[-1]["options"] == GenerationRequest("S", 9, 0.5, 0.9, 5, 3, 0.1, 1.1, ("a b", "c"))
    assert loraft("generate", "run", "-p", "Hi", "--num-beams", "4").exit_code == 0
    assert calls[-1]["options"] == GenerationRequest(seed=0, num_beams=4)
    loraft("generate", "run", "-p", "Hi", "--no-cuda-graphs")  # on a CPU it is refused, once the model is opened
    assert calls[-1]["model"] == ModelRequest("run", cuda_graphs=False)


@pytest.mark.usefixtures("place")
def test_json_is_the_completion(loraft: Loraft) -> None:
    document = json.loads(loraft("generate", "run", "-p", "Hi", "--json").stdout)
    assert list(document) == [
        "prompt",
        "completion",
        "token_ids",
        "logprobs",
        "finish_reason",
        "ended_by",
        "prefill_ms",
        "decode_tokens_per_second",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_a_dash_reads_standard_input(loraft: Loraft, calls: Calls) -> None:
    for stdin, prompt in (("two\nlines\n", "two\nlines"), ("", ""), ("é\n\n", "é\n")):
        loraft("generate", "run", "-p", "-", stdin=stdin)
        assert calls[-1]["prompt"] == prompt


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
    ids=" ".join,
)
def test_what_cannot_be_is_refused(loraft: Loraft, calls: Calls, arguments: list[str], wording: Wording) -> None:
    result = loraft("generate", *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    wording(result.stderr)
    assert calls == []


def test_a_reader_who_goes_away_is_no_error(place: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    _, status = os.waitpid(started("generate", "run", "-p", "Hi", cwd=place, output=writer), 0)
    os.close(writer)
    said = (place / ".stderr").read_text()
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGPIPE
    assert "Error" not in said
    assert "Traceback" not in said

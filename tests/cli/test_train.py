"""`loraft train` and `loraft check`: results, progress, problems, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli import fake_api
from tests.cli.conftest import Loraft, WriteConfig

ROOT = Path(__file__).parents[2]


def test_train_ends_with_the_result_and_how_to_try_it(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("train", str(config()))
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["run", "folder", "runs/tickets-1"] in rows
    assert ["best", "step", "200"] in rows
    assert "loraft generate runs/tickets-1 --prompt TEXT" in result.stdout


def test_progress_where_there_is_no_terminal_is_plain_lines(loraft: Loraft, config: WriteConfig) -> None:
    lines = loraft("train", str(config())).stderr.splitlines()
    assert sum(line.startswith("step ") for line in lines) == fake_api.STEPS / 10
    assert (
        "step  10/300  epoch 0.10  loss 2.2371  grad norm 1.4200  rate 1.93e-4  322 tokens/s  peak 2.1 GB  6m17s left"
        in lines
    )
    assert "evaluation at step 100: loss 0.8230, perplexity 2.2773, 100 rows, best so far" in lines
    assert "saved runs/tickets-1/checkpoints/step-000300" in lines
    assert all(line.isprintable() for line in lines)


def test_train_json_is_one_document(loraft: Loraft, config: WriteConfig) -> None:
    document = json.loads(loraft("train", str(config()), "--json").stdout)
    assert document["run_folder"] == "runs/tickets-1"
    assert document["eval_loss"] is None, "JSON has no infinity"


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ([], (False, False, False)),
        (["--resume"], (True, False, False)),
        (["--resume-anyway"], (True, True, False)),
        (["--overwrite"], (False, False, True)),
    ],
)
def test_train_hands_its_options_on(
    loraft: Loraft, config: WriteConfig, options: list[str], given: tuple[bool, ...]
) -> None:
    loraft("train", str(config()), *options)
    call = fake_api.CALLS[-1]
    assert call["name"] == "tickets"
    assert (call["resume"], call["resume_anyway"], call["overwrite"]) == given


def test_resume_and_overwrite_exclude_each_other(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("train", str(config()), "--resume", "--overwrite")
    assert result.exit_code == 2
    assert "choose one" in result.stderr
    assert fake_api.CALLS == []


@pytest.mark.parametrize(
    ("data", "exit_code", "said"),
    [
        ("nan.jsonl", 3, "error: the loss is NaN at step 137"),
        ("sigint.jsonl", 130, "stopped at step 137"),
        ("sigterm.jsonl", 143, "stopped at step 137"),
        ("ctrl-c.jsonl", 130, "stopped."),
        ("terminated.jsonl", 143, "stopped."),
        ("terminated-in-a-library.jsonl", 143, "stopped."),
        ("interrupted-in-a-library.jsonl", 130, "stopped."),
        ("bug.jsonl", 1, "This is a bug in loraft"),
    ],
)
def test_exit_codes_of_train(loraft: Loraft, config: WriteConfig, data: str, exit_code: int, said: str) -> None:
    result = loraft("train", str(config(data)))
    assert result.exit_code == exit_code
    assert said in result.stderr
    assert result.stdout == ""
    assert ("Traceback" in result.stderr) == (exit_code == 1)


def test_problems_are_json_too(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("check", str(config("bad.jsonl")), "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["exit_code"] == 2
    assert [problem["where"] for problem in document["problems"]] == ["bad.jsonl:3", "bad.jsonl:9"]


def test_every_problem_is_told_with_its_remedy(loraft: Loraft, config: WriteConfig) -> None:
    lines = loraft("check", str(config("bad.jsonl"))).stderr.splitlines()
    first = lines.index("error: bad.jsonl:3 prompt: the prompt is null")
    assert lines[first + 1 :] == [
        "  Mend the row, or set data.on_bad_row: skip.",
        "error: bad.jsonl:9: not JSON [/red] at column 7",
    ]


def test_check_draws_whatever_the_report_holds(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("check", str(config()), "training.max_steps=7")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["trainable", "parameters", "4,884,480"] in rows
    assert ["trained", "31.41", "%"] in rows
    assert ["peak", "2.1", "GB"] in rows
    assert fake_api.CALLS[-1]["steps"] == 7
    assert "note: device cpu, dtype bfloat16, which this CPU multiplies natively" in result.stderr


def test_what_trains_every_weight_has_no_part_called_adapter(loraft: Loraft, config: WriteConfig) -> None:
    shown = loraft("check", str(config(method="full"))).stdout
    assert "adapter" not in shown
    assert "trained\n  trainable parameters" in shown
    assert "adapter" in json.loads(loraft("check", str(config(method="full")), "--json").stdout)


def test_check_json_is_one_document_whatever_libraries_print(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("check", str(config()), "--json")
    assert {"model", "data", "adapter", "memory", "steps"} <= set(json.loads(result.stdout))
    assert "a library prints where it should not" in result.stderr


def test_an_unused_section_is_said(loraft: Loraft, config: WriteConfig) -> None:
    said = "note: the section lora is not used by method: full"
    assert said in loraft("check", str(config(method="full"))).stderr
    assert said not in loraft("check", str(config(method="lora"))).stderr


def test_a_config_error_never_reaches_the_api(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("train", str(config()), "lora.r=-1", "training.max_step=3", "--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)["problems"]) == 2
    assert "Did you mean training.max_steps?" in result.stderr
    assert fake_api.CALLS == []


def test_a_run_outlives_whoever_read_its_progress(config: WriteConfig) -> None:
    words = fake_api.command_line("train", str(config(method="full")), "--json")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=writer, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert json.loads(done.stdout)["steps"] == fake_api.STEPS

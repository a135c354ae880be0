"""`loraft train` and `loraft check`: results, progress, problems, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from loraft.errors import DataError
from loraft.training.run_dir import RunFolder
from tests.cli.conftest import Calls, Loraft, WriteConfig
from tests.cli.running import started
from tests.words import Wording

Fault = Callable[[RunFolder], None]


@pytest.mark.slow
def test_train_ends_with_the_result_and_how_to_try_it(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("train", str(config()))
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["run", "folder", "runs/tickets-1"] in rows
    assert ["best", "step", "4"] in rows
    assert "loraft generate runs/tickets-1 --prompt TEXT" in result.stdout
    assert Path("runs/tickets-1/adapter").is_dir()


@pytest.mark.slow
def test_progress_where_there_is_no_terminal_is_plain_lines(loraft: Loraft, config: WriteConfig) -> None:
    lines = loraft("train", str(config())).stderr.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["2/4", "4/4"]
    number = r"\d+(\.\d+)?"
    pattern = (
        rf"step 2/4  epoch 0\.40  loss {number}  grad norm {number}  rate {number}e-2  [\d,]+ tokens/s"
        rf"  peak {number} [MG]B  \d+s left"
    )
    assert re.fullmatch(pattern, steps[0]), steps[0]
    evaluations = [line for line in lines if line.startswith("evaluation at step ")]
    measured = rf"evaluation at step 2: loss {number}, perplexity {number}, 20 rows, best so far"
    assert re.fullmatch(measured, evaluations[0]), evaluations[0]
    assert "saved runs/tickets-1/checkpoints/step-000004" in lines
    assert all(line.isprintable() for line in lines)


def test_train_json_is_one_document(loraft: Loraft, config: WriteConfig) -> None:
    document = json.loads(loraft("train", str(config()), "--json").stdout)
    assert document["run_folder"] == "runs/tickets-1"
    assert document["best_step"] == document["saved_step"] == 4


@pytest.mark.slow_after(1)
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
    loraft: Loraft, config: WriteConfig, calls: Calls, options: list[str], given: tuple[bool, ...]
) -> None:
    in_run = "training.output_dir=run" if options else "training.output_dir=another"
    done = loraft("train", str(config()), in_run, "training.max_steps=1", *options)
    (call,) = calls
    assert call["name"] == "tickets"
    assert (call["resume"], call["resume_anyway"], call["overwrite"]) == given
    assert done.exit_code == (2 if options == ["--resume"] else 0), "the run was trained otherwise"


def test_resume_and_overwrite_exclude_each_other(loraft: Loraft, config: WriteConfig, calls: Calls) -> None:
    result = loraft("train", str(config()), "--resume", "--overwrite")
    assert result.exit_code == 2
    assert "choose one" in result.stderr
    assert calls == []


def signalled(number: int) -> Fault:
    """A signal comes meanwhile."""
    return lambda _: os.kill(os.getpid(), number)


def ctrl_c(_: RunFolder) -> None:
    raise KeyboardInterrupt


def in_a_library(number: int) -> Fault:
    """A signal comes meanwhile, and a library makes an error of it."""

    def fail(_: RunFolder) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise DataError("transformers cannot read it") from None

    return fail


def bug(_: RunFolder) -> None:
    raise RuntimeError("a bug")


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("where", "fault", "exit_code"),
    [
        ("append", signalled(signal.SIGINT), 130),
        ("append", signalled(signal.SIGTERM), 143),
        ("open", ctrl_c, 130),
        ("open", signalled(signal.SIGTERM), 143),
        ("open", in_a_library(signal.SIGTERM), 143),
        ("open", in_a_library(signal.SIGINT), 130),
        ("open", bug, 1),
    ],
)
def test_exit_codes_of_train(
    loraft: Loraft,
    config: WriteConfig,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fault: Fault,
    exit_code: int,
    wording: Wording,
) -> None:
    """The run's folder fails: where it is opened, before the first step, or where the second step is logged in it."""
    there = getattr(RunFolder, where)

    def faulty(folder: RunFolder, *given: object) -> None:
        fault(folder)
        there(folder, *given)

    monkeypatch.setattr(RunFolder, where, faulty)
    result = loraft("train", str(config()))
    assert result.exit_code == exit_code
    wording("\n".join(line for line in result.stderr.splitlines()[-2:] if not line.startswith("saved ")))
    assert result.stdout == ""
    assert ("Traceback" in result.stderr) == (exit_code == 1)
    assert Path("runs/tickets-1/checkpoints/step-000002").is_dir() == (where == "append")


def test_a_loss_that_is_no_number_ends_with_3(loraft: Loraft, config: WriteConfig) -> None:
    result = loraft("train", str(config()), "training.learning_rate=1e30")
    assert result.exit_code == 3
    assert re.search(r"^error: .*the loss is nan at step 2", result.stderr, re.MULTILINE)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.fixture
def bad_rows(config: WriteConfig) -> str:
    """A config over rows of which two are bad."""
    good = '{"prompt": "Capital?", "completion": "Paris."}\n'
    Path("bad.jsonl").write_text(f'{good}{good}{{"prompt": null, "completion": "b"}}\n{good * 5}{{"prompt" [/red]}}\n')
    return str(config("bad.jsonl"))


def test_problems_are_json_too(loraft: Loraft, bad_rows: str) -> None:
    result = loraft("check", bad_rows, "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["exit_code"] == 2
    assert {(problem["where"], problem["key"]) for problem in document["problems"]} == {
        ("bad.jsonl:3", "prompt"),
        ("bad.jsonl:9", None),
    }


def test_every_problem_is_told_with_its_remedy(loraft: Loraft, bad_rows: str) -> None:
    problems = json.loads(loraft("check", bad_rows, "--json").stdout)["problems"]
    lines = loraft("check", bad_rows).stderr.splitlines()
    told: list[str] = []
    for problem in problems:
        key = f" {problem['key']}" if problem["key"] else ""
        told += [f"error: {problem['where']}{key}: {problem['message']}", f"  {problem['remedy']}"]
    assert lines[-len(told) :] == told
    assert len(told) == 4


def test_check_draws_whatever_the_report_holds(loraft: Loraft, config: WriteConfig, calls: Calls) -> None:
    result = loraft("check", str(config()), "training.max_steps=7")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    report = json.loads(loraft("check", str(config()), "training.max_steps=7", "--json").stdout)
    assert ["trainable", "parameters", f"{report['adapter']['trainable_parameters']:,}"] in rows
    assert ["trained", f"{report['data']['trained_share']:.2%}".replace("%", ""), "%"] in rows
    assert ["steps", "7"] in rows
    assert any(row[0] == "peak" and row[-1] in ("MB", "GB") for row in rows if row)
    assert [call["config"].training.max_steps for call in calls] == [7, 7]
    notes = [line.removeprefix("note: ") for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert notes == report["notes"]
    assert notes[0].startswith("device cpu")


def test_what_trains_every_weight_has_no_part_called_adapter(loraft: Loraft, config: WriteConfig) -> None:
    shown = loraft("check", str(config(method="full"))).stdout
    assert "adapter" not in shown
    assert "trained\n  method" in shown
    assert "adapter" in json.loads(loraft("check", str(config(method="full")), "--json").stdout)


def test_check_json_is_one_document_whatever_libraries_print(
    loraft: Loraft, config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = transformers.PreTrainedTokenizerBase.__call__

    def noisy(*args: object, **kwargs: object) -> object:
        print("a library prints where it should not")
        return encode(*args, **kwargs)

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.__call__", noisy)
    result = loraft("check", str(config()), "--json")
    assert {"model", "data", "adapter", "memory", "steps"} <= set(json.loads(result.stdout))
    assert "a library prints where it should not" in result.stderr


def test_an_unused_section_is_said(loraft: Loraft, config: WriteConfig) -> None:
    said = "note: the section lora is not used by method: full"
    assert said in loraft("check", str(config(method="full"))).stderr
    assert said not in loraft("check", str(config(method="lora"))).stderr


def test_a_config_error_never_reaches_the_api(loraft: Loraft, config: WriteConfig, calls: Calls) -> None:
    result = loraft("train", str(config()), "lora.r=-1", "training.max_step=3", "--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)["problems"]) == 2
    assert "Did you mean training.max_steps?" in result.stderr
    assert calls == []


@pytest.mark.slow
def test_a_run_outlives_whoever_read_its_progress(place: Path, config: WriteConfig) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    _, status = os.waitpid(started("train", str(config()), "--json", cwd=place, errors=writer), 0)
    os.close(writer)
    assert os.waitstatus_to_exitcode(status) == 0
    assert json.loads((place / ".stdout").read_text())["steps"] == 4

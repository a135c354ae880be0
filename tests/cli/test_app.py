"""The program as a whole: its version, its help, and how little it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loraft import __version__
from loraft.__main__ import main
from loraft.cli.wording import COMMANDS as LISTED
from loraft.config.aliases import COMMANDS_ELSEWHERE
from tests.cli.conftest import Loraft
from tests.tiny import mostly_slow
from tests.words import Wording

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "init", "import", "check", "preview", "train", "evaluate", "report", "tune", "compare", "baseline", "merge",
    "export", "generate", "chat", "serve", "predict", "convert", "push", "inspect-layers", "tour", "schema", "doctor",
]  # fmt: skip
SHORTER = ("baseline", "convert", "evaluate", "generate", "inspect-layers", "merge", "predict", "report", "serve")
"""The commands of which the list says less than they say of themselves."""
HEAVY = ["torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "numpy"]


def test_version(loraft: Loraft) -> None:
    result = loraft("--version")
    assert (result.exit_code, result.stdout) == (0, f"loraft {__version__}\n")


def test_every_word_of_other_tools_is_answered_with_a_command_that_there_is() -> None:
    assert set(COMMANDS_ELSEWHERE.values()) <= set(COMMANDS)
    assert COMMANDS_ELSEWHERE.keys().isdisjoint(COMMANDS)


def test_help_lists_every_command(loraft: Loraft) -> None:
    result = loraft("--help")
    assert result.exit_code == 0
    listed = result.stdout.split("Commands:")[1]
    assert [line.split()[0] for line in listed.strip().splitlines()] == COMMANDS
    assert "..." not in listed, "a summary is cut in the middle"


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian", "x.yaml"],
        ["sft", "x.yaml"],
        ["infer", "x"],
        ["eval", "x"],
        ["train", "x.yaml", "--resme"],
        ["train"],
        ["generate", "x", "--temp", "0.5"],
        ["generate", "x", "--tokens", "9"],
        ["generate", "x", "--max_new_tokens", "9"],
        ["train", "x.yaml", "--max_steps", "5"],
        ["check", "x.yaml", "--learning-rate=1e-4"],
        ["preview", "x.yaml", "--data.train", "rows.jsonl"],
        ["train", "x.yaml", "--lora_r", "8"],
        ["train", "x.yaml", "--use_dora"],
        ["generate", "What is up?"],
        ["predict", "Well done"],
    ],
    ids=" ".join,
)
def test_a_slip_of_the_hand_is_refused_with_a_hint(loraft: Loraft, arguments: list[str], wording: Wording) -> None:
    result = loraft(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    wording(result.stderr)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["--version"],
        ["schema"],
        ["train", "absent.yaml"],
        ["check", "bad.yaml", "lora.r=x"],
    ],
)
def test_nothing_heavy_is_loaded_before_the_config_is_right(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("lora: {rank: 8}\n")
    program = (
        "import sys\nfrom loraft.__main__ import main\n"
        "try:\n    main()\nfinally:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not loaded, loaded\n    print('light', file=sys.stderr)"
    )
    words = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert "light" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    mostly_slow(
        [[], ["--help"], ["--version"], ["evaluate", "--help"], ["chat", "--help"]], ["--help"], ["evaluate", "--help"]
    ),
)
def test_help_loads_no_schema_and_no_task(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom loraft.__main__ import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(*(name for name in sys.modules if name.startswith('loraft.')), file=sys.stderr)"
    )
    words = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    loaded = set(done.stderr.split())
    assert "loraft.cli.app" in loaded, done.stderr
    assert loaded.isdisjoint({"loraft.config.schema", "loraft.config.sections", "loraft.tasks"})
    if "evaluate" not in arguments and "chat" not in arguments:
        assert not any(name.startswith("loraft.cli.commands.") for name in loaded), (
            "each is loaded when it is asked for"
        )


def test_the_list_of_commands_says_what_each_says_of_itself(loraft: Loraft) -> None:
    for name, (_, summary) in LISTED.items():
        first = loraft(name, "--help").stdout.split("\n\n")[1].strip().split("\n")[0].strip()
        assert name in SHORTER or summary == first, f"{name}: {first}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "limit"), [(["--help"], 1.5), (["train", "--help"], 3.0), (["train", "no.yaml"], 4.5)]
)
def test_help_and_errors_are_instant(arguments: list[str], limit: float) -> None:
    """Against what the libraries of any such program take to load, in the same minute on the same machine."""
    bare = ["-c", "import typer, rich.console\nfrom pydantic import BaseModel"]
    seconds = [(_processor_seconds(bare), _processor_seconds(["-m", "loraft", *arguments])) for _ in range(7)]
    libraries, command = map(min, zip(*seconds, strict=True))
    assert command < limit * libraries


def _processor_seconds(words: list[str]) -> float:
    """What Python takes to run `words`: others that use the machine lengthen it less than the clock's seconds."""
    began = os.times()
    subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=False)
    ended = os.times()
    return ended.children_user + ended.children_system - began.children_user - began.children_system


def test_ctrl_c_before_a_command_has_begun_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loraft.cli.app.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped.\n"

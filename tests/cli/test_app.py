"""The program as a whole: its version, its help, and how little it loads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraft import __version__
from loraft.__main__ import main
from loraft.cli.unknown_options import COMMANDS_ELSEWHERE
from tests.cli.conftest import Loraft

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "init", "check", "preview", "train", "evaluate", "merge", "generate", "chat", "predict", "inspect-layers", "schema",
    "doctor",
]  # fmt: skip
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
    ("arguments", "hint"),
    [
        (["trian", "x.yaml"], "train"),
        (["sft", "x.yaml"], "No such command 'sft'. Did you mean 'train'?"),
        (["infer", "x"], "Did you mean 'generate'?"),
        (["eval", "x"], "Did you mean 'evaluate'?"),
        (["export", "x"], "Did you mean 'merge'?"),
        (["train", "x.yaml", "--resme"], "--resume"),
        (["train"], "CONFIG"),
        (["generate", "x", "--temp", "0.5"], "(Possible options: --temperature)"),
        (["generate", "x", "--tokens", "9"], "(Possible options: --max-new-tokens)"),
        (["generate", "x", "--max_new_tokens", "9"], "(Possible options: --max-new-tokens)"),
        (["train", "x.yaml", "--max_steps", "5"], "Write training.max_steps=5 after the config."),
        (["check", "x.yaml", "--learning-rate=1e-4"], "Write training.learning_rate=1e-4 after the config."),
        (["preview", "x.yaml", "--data.train", "rows.jsonl"], "Write data.train=rows.jsonl after the config."),
        (["train", "x.yaml", "--lora_r", "8"], "Write lora.r=8 after the config."),
        (["train", "x.yaml", "--use_dora"], "Write lora.use_dora=… after the config."),
        (["generate", "What is up?"], "'What is up?' is TARGET, the model: give what it answers by --prompt"),
        (["predict", "Well done"], "'Well done' is TARGET, the model: give what it classifies by --text"),
    ],
)
def test_a_slip_of_the_hand_is_refused_with_a_hint(loraft: Loraft, arguments: list[str], hint: str) -> None:
    result = loraft(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert hint in " ".join(result.stderr.split())


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "limit"), [(["--help"], 0.35), (["train", "--help"], 0.35), (["train", "no.yaml"], 0.6)]
)
def test_help_and_errors_are_instant(arguments: list[str], limit: float) -> None:
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "loraft", *arguments], cwd=ROOT, capture_output=True, check=False)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < limit


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

"""`loraft tour`."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from loraft.cli.commands import tour as command
from loraft.inspection.layers_report import inspect_layers
from loraft.tour import PARTS
from loraft.tour.screens import Fact, Part, Screen, Shown
from tests.cli.conftest import Loraft
from tests.cli.running import loraft as typed
from tests.cli.running import refused
from tests.tiny import save_tiny
from tests.words import Wording

TWO_SCREENS = Part(
    "A small part",
    (
        Screen(
            "The first idea.",
            (Shown("inspect-layers tiny", only=("positions",)), Shown("inspect-layers nowhere", refused=True)),
            (
                Fact("it is learned", "it turns", lambda model, _: model["position_encoding"]["kind"]),
                Fact("", "nobody says so", lambda *_: ""),
            ),
        ),
        Screen(
            "The second idea.",
            (
                Shown("inspect-layers tiny", only=("positions",)),
                Shown("generate tiny --prompt a --max-new-tokens 2 --trace"),
            ),
            (Fact("as before", "as before", lambda _, answer: f"{len(answer['token_ids'])} tokens"),),
        ),
    ),
)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tour with one small part, which a tiny model shows; the folder that its commands run in."""
    folder = tmp_path / "cache" / "tour"
    monkeypatch.setenv("LORAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "loraft.tour.example_files.write_examples", lambda folder: folder.mkdir(parents=True, exist_ok=True)
    )
    monkeypatch.setattr(command, "PARTS", {1: TWO_SCREENS, 4: TWO_SCREENS})
    folder.mkdir(parents=True)
    save_tiny(folder / "tiny", "llama")
    return folder


def test_without_a_part_it_lists_them(loraft: Loraft) -> None:
    result = loraft("tour")
    assert result.exit_code == 0
    for number, part in PARTS.items():
        assert re.search(rf"^ *{number}  {part.title}", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", [("99",), ("0",), ("x",), ("1", "--all")])
def test_a_part_that_there_is_not_is_refused(words: tuple[str, ...], tmp_path: Path, wording: Wording) -> None:
    wording(refused(typed("tour", *words, cwd=tmp_path)))


def test_a_screen_shows_what_the_command_prints(loraft: Loraft, small: Path) -> None:
    result = loraft("tour", "1")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "$ loraft inspect-layers tiny # of what it prints: positions" in text
    assert "commonly said it is learned what is so it turns measured here rotary" in text
    assert "what is so nobody says so" in text
    assert "(exit code 2)" in text
    assert "parameters" not in text.partition("The second idea")[0], "the other sections are left out"
    evidence = inspect_layers(str(small / "tiny")).as_dict()["position_encoding"]["evidence"]
    assert " ".join(evidence[0].split()) in text


def test_a_command_that_ran_is_not_run_again(loraft: Loraft, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = command.CommandRuns._run
    monkeypatch.setattr(command.CommandRuns, "_run", lambda self, shown: ran.append(shown.words) or run(self, shown))
    result = loraft("tour", "--all")
    assert result.exit_code == 0, result.stderr
    assert sorted(ran) == sorted({shown.words for screen in TWO_SCREENS.screens for shown in screen.commands})
    assert result.stdout.count("# it ran before") == 5
    assert result.stdout.count("Part 4: A small part") == 2


def test_what_fails_is_told_with_its_reason(loraft: Loraft, small: Path) -> None:
    (small / "tiny" / "config.json").unlink()
    result = loraft("tour", "1")
    assert result.exit_code == 3
    assert "inspect-layers tiny" in result.stderr
    assert "config.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_cache_may_be_named_from_where_one_stands(small: Path) -> None:
    done = typed("tour", "1", cwd=small.parents[1])
    assert done.returncode == 0, done.stderr
    assert str(small) in done.stdout


class Terminal(io.StringIO):
    """A stream that says that a person sits at it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed_text", "screens"), [("\n", 2), ("", 1)])
def test_a_person_goes_on_by_enter(small: Path, monkeypatch: pytest.MonkeyPatch, typed_text: str, screens: int) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(typed_text))
    monkeypatch.setattr("sys.stdout", out)
    command.tour(command.TourOptions(part=1))
    assert out.getvalue().count("A small part") == screens


def test_nobody_is_waited_for(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(""))
    monkeypatch.setattr("sys.stdout", out)
    command.tour(command.TourOptions(part=1, no_pause=True))
    assert out.getvalue().count("A small part") == 2


def test_it_is_legible_at_80_columns(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", out)
    command.tour(command.TourOptions(part=1, no_pause=True))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert max(map(len, plain.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_tour_runs(tmp_path: Path) -> None:
    done = typed("tour", "--all", "--no-pause", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = [fact for part in PARTS.values() for screen in part.screens for fact in screen.facts]
    assert done.stdout.count("\nmeasured here  ") == len(facts)
    assert all(f"Part {number}: {part.title}" in done.stdout for number, part in PARTS.items())
    assert done.stderr == "", "what is written and run says nothing of its own"
    assert "{'" not in done.stdout, "no value is shown as Python has it"

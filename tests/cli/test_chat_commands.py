"""What a line of a chat means."""

from __future__ import annotations

import pytest

from loraft.cli.commands.chat_commands import ACTIONS, COMMANDS, MEANINGS, SETTINGS, parse_line, with_settings
from loraft.errors import InvalidInputError
from loraft.inference.requests import GenerationRequest


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("hello", ("", "hello")),
        ("a /undo", ("", "a /undo")),
        ("//undo", ("", "/undo")),
        ("//", ("", "/")),
        ("/undo", ("/undo", "")),
        ("/system  Be  kind. ", ("/system", "Be  kind.")),
    ],
)
def test_a_line_is_said_or_done(line: str, meant: object) -> None:
    assert parse_line(line) == meant


@pytest.mark.parametrize(("line", "near"), [("/rest", "/reset"), ("/exit", None), ("/", None), ("/Undo", "/undo")])
def test_an_unknown_command_is_told_with_the_nearest(line: str, near: str | None) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_line(line)
    remedy = refused.value.problems[0].remedy or ""
    assert (f"Did you mean {near}?" in remedy) if near else ("/help lists them" in remedy)


def test_every_setting_is_one_of_the_options() -> None:
    options = with_settings(GenerationRequest(), "temperature=0.7 top_p=0.9 top_k=5 seed=3 max_new_tokens=9")
    assert options == GenerationRequest(None, 9, 0.7, 0.9, 5, 3)
    assert with_settings(options, "stop=###, END,").stop == ("###", "END")
    assert with_settings(options, "temperature=none top_k=default seed=") == GenerationRequest(None, 9, None, 0.9)
    assert with_settings(GenerationRequest(), "system=Say a=b, kindly. top_k=2") == GenerationRequest(
        "Say a=b, kindly.", top_k=2
    )
    assert set(SETTINGS) >= {"temperature", "max_new_tokens", "system"}


@pytest.mark.parametrize("text", ["temperature", "=1", "top_k=x", "top_k=1.5", "warmth=1", "seed=1e3", "top_p=a b"])
def test_a_setting_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        with_settings(GenerationRequest(), text)


def test_each_command_has_its_meaning_and_its_action() -> None:
    assert {*ACTIONS, "/quit"} == set(COMMANDS)
    assert all(MEANINGS.values())

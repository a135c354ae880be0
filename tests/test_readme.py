"""The commands and configs in the README are as the program takes them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from typer.main import get_command

from loraft.cli.app import app
from loraft.config.config_file import load_config
from loraft.models.registry import TRAINED_FOR

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language in all documents."""
    texts = (path.read_text() for path in DOCUMENTS)
    return [
        block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def commands(program: str) -> list[list[str]]:
    """The words after `program` in every shell block, comments left out."""
    lines = (line for block in blocks("bash") for line in block.splitlines())
    split = (shlex.split(line, comments=True) for line in lines)
    return [words[1:] for words in split if words and words[0] == program]


def test_there_is_something_to_check() -> None:
    assert commands("loraft")
    assert blocks("yaml")


@pytest.mark.parametrize("words", commands("loraft"), ids=" ".join)
def test_the_command_and_its_options_exist(words: list[str]) -> None:
    group = get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    if words[0].startswith("-"):
        assert words[0] in {option for parameter in group.params for option in parameter.opts}
        return
    command = group.commands[words[0]]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words[1:] if word.startswith("-") and word != "-"}
    assert used <= options | {"-h", "--help"}
    configs = [word for word in words if word.startswith("configs/")]
    assert all((ROOT / config).is_file() for config in configs)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_config_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "readme.yaml"
    path.write_text(text)
    load_config(path, [])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_linked_or_called_is_there(document: Path) -> None:
    text = document.read_text()
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    called = re.findall(r"\bscripts/[a-z_]+(?:\.py)?", text)
    assert [name for name in linked if not (document.parent / name).exists()] == []
    assert [name for name in called if not (ROOT / name).exists()] == []


def test_the_supported_types_are_named() -> None:
    limits = (ROOT / "README.md").read_text().split("## Limits")[1].split("Mixtures")[0]
    decoders, _, two_stacks = limits.partition("Encoder–decoders")
    assert set(re.findall(r"`(\w+)`", decoders)) == set(TRAINED_FOR["causal_lm"])
    assert set(re.findall(r"`(\w+)`", two_stacks)) == set(TRAINED_FOR["seq2seq_lm"])

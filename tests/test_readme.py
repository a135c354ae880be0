"""README, CONTRIBUTING and the pages in docs/: their commands, configs, links and figures are what the program has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from loraft.cli.app import app
from loraft.config.config_file import load_config
from loraft.models.registry import CLASSIFIERS, DECODERS, TWO_STACKS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_BYTES = 9 * 1024
"""A newcomer reads the README to its end; what is longer belongs into docs/."""
GROUP: Any = get_command(app)
ANY_CONFIG = ROOT / "configs/quickstart.yaml"
"""Stands for a config that the reader writes, so that its overrides are read all the same."""

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(document: Path, program: str) -> list[list[str]]:
    """The words after `program` in every shell block, comments and redirections left out."""
    lines = (line for block in blocks(document.read_text(), "bash") for line in block.splitlines())
    split = (shlex.split(line, comments=True) for line in lines)
    found = [words[1:] for words in split if words and words[0].rpartition("/")[2] == program]
    return [words[: words.index(">")] if ">" in words else words for words in found]


def take(words: list[str]) -> None:
    """Read a command as the command line does, to the point where it would run."""
    name, *arguments = words
    given: dict[str, Any] = GROUP.get_command(None, name).make_context(name, arguments).params
    if given.get("config"):
        path = ROOT / given["config"]
        assert path.is_file() or "/" not in given["config"], f"{given['config']} is not there"
        load_config(path if path.is_file() else ANY_CONFIG, given["overrides"] or ())


@every_document
def test_the_commands_are_taken(document: Path) -> None:
    for words in commands(document, "loraft"):
        take(words)


def test_a_command_that_is_wrong_is_found() -> None:
    for line, said in (
        ("train configs/quickstart.yaml training.learning_rat=1", "learning_rat"),
        ("train configs/none.yaml", "is not there"),
        ("train", "config"),
        ("chat x --prompt y", "--prompt"),
    ):
        with pytest.raises(Exception, match=said):
            take(line.split())
    assert commands(README, "loraft")
    assert blocks(README.read_text(), "yaml")


@every_document
def test_the_configs_load(document: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(document.read_text(), "yaml")):
        path = tmp_path / f"block-{number}.yaml"
        path.write_text(text)
        load_config(path, [])


@every_document
def test_what_is_linked_or_called_is_there(document: Path) -> None:
    text = document.read_text()
    linked = [target.partition("#") for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    files = {(document.parent / name if name else document, anchor) for name, _, anchor in linked}
    called = re.findall(r"\bscripts/[a-z_]+(?:\.py)?", text)
    assert [path for path, _ in files if not path.exists()] == []
    assert [path for path, anchor in files if anchor and anchor not in anchors(path)] == []
    assert [name for name in called if not (ROOT / name).exists()] == []


def anchors(page: Path) -> list[str]:
    """What a link to a heading of the page is called."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


def test_what_is_said_to_stand_in_a_module_is_there() -> None:
    """As in CONTRIBUTING, which says where something new has its place."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"`([A-Za-z_]\w+)`(?:,? (?:of|in)\s+|\s+\()`(\w+/[\w/]+\.py)`", text)
    assert len(found) > 10
    for name, place in found:
        file = next(path for path in (ROOT / "loraft" / place, ROOT / place) if path.is_file())
        assert re.search(rf"\b{name}\b", file.read_text()), f"{name} is not in {place}"


def test_every_page_is_reached_from_the_readme() -> None:
    """By links, over other pages where need be."""
    reached, to_read = {README}, [README]
    while to_read:
        page = to_read.pop()
        linked = {(page.parent / name).resolve() for name in re.findall(r"\]\(([^)#]+)", page.read_text())}
        to_read += linked & set(DOCUMENTS) - reached
        reached |= linked
    assert [path for path in DOCUMENTS if path not in reached] == []


def test_the_readme_is_short_and_its_figures_are_measured_ones() -> None:
    assert len(README.read_bytes()) <= MOST_BYTES
    figures = re.findall(r"[\d.,]+ (?:tokens/s|GB|MB|s)\b", README.read_text().split("## Figures")[1].split("##")[0])
    measured = (ROOT / "docs/performance.md").read_text()
    assert figures
    assert [each for each in figures if not re.search(rf"(?<![\d.,]){re.escape(each.split()[0])}\b", measured)] == []


def test_the_supported_types_are_named() -> None:
    table = README.read_text().split("## Supported models")[1].split("##")[0]
    named = {row[0]: row[1:] for row in (re.findall(r"`([\w-]+)`", line) for line in table.splitlines()) if row}
    assert set(named["causal_lm"]) == set(DECODERS)
    assert set(named["seq2seq_lm"]) == set(TWO_STACKS)
    classifiers = set(CLASSIFIERS)
    encoders, decoders = classifiers - set(named["causal_lm"]), set(named["causal_lm"])
    assert named["seq_cls"] == [*sorted(encoders), "causal_lm", *sorted(decoders - classifiers)]

"""`docs/ideas/`: its Python code prints what stands below it, and every page is one of the index."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.test_readme import blocks

FOLDER = Path(__file__).parent.parent / "docs/ideas"
WITH_CODE = [path for path in sorted(FOLDER.glob("*.md")) if blocks(path.read_text(), "python")]
FIGURE = re.compile(r"\d\.\de[+-]\d\d")


@pytest.fixture(autouse=True)
def _dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda path: path.stem)
def test_the_code_prints_what_stands_below_it(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words to the letter, figures to their size, for sums round differently from one machine to another."""
    text = page.read_text()
    exec(compile(blocks(text, "python")[0], page.name, "exec"), {})
    printed, shown = capsys.readouterr().out, blocks(text, "text")[0]
    assert FIGURE.sub("…", printed) == FIGURE.sub("…", shown)
    for ours, theirs in zip(FIGURE.findall(printed), FIGURE.findall(shown), strict=True):
        assert math.isclose(float(ours), float(theirs), rel_tol=0.5)


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"^- \[[^]]+\]\((\S+)\)", (FOLDER / "index.md").read_text(), re.MULTILINE))
    assert linked == {path.name for path in FOLDER.glob("*.md")} - {"index.md"}

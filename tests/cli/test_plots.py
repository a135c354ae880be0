"""Pictures: what is drawn, and that the same lines are the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.cli.views.plots import dress, picture
from loraft.errors import RunError


def drawn(path: Path) -> bytes:
    with picture(path) as ((axes,),):
        axes.plot((1, 2, 3), (1.0, 0.1, 0.01), label="falls & falls")
        axes.plot((1, 2, 3), (1, 1, 1), "--", label="dashed")
        axes.set_yscale("log")
        axes.legend()
        dress(axes, "What falls", "distance", "norm")
    return path.read_bytes()


@pytest.mark.slow
def test_names_title_and_axes_are_text_of_the_picture(tmp_path: Path) -> None:
    text = drawn(tmp_path / "p.svg").decode()
    for words in ("falls &amp; falls", "dashed", "What falls", "distance", "norm"):
        assert f">{words}</text>" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p.svg", "p.png"])
def test_the_same_lines_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    assert drawn(tmp_path / name) == drawn(tmp_path / name)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.png").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        drawn(tmp_path / "p.png")

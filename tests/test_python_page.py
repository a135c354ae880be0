"""`docs/python.md` runs: its Python code, from top to bottom, in a folder with its config, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import blocks
from tests.tiny import save_tiny

PAGE = Path(__file__).parent.parent / "docs/python.md"
STAND_INS = {
    "builtin:smollm2-135m-instruct": ("llama", {"max_position_embeddings": 1024}),
    "builtin:all-minilm-l6-v2": ("bert", {}),
}


def with_tiny_models(text: str, folder: Path) -> str:
    """The page with a tiny model of random weights for each model that it names."""
    for name, (model_type, sizes) in STAND_INS.items():
        assert name in text
        text = text.replace(name, str(save_tiny(folder / model_type, model_type, **sizes)))
    return text


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = with_tiny_models(PAGE.read_text(), tmp_path / "models")
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    (here / "tickets.yaml").write_text(blocks(text, "yaml")[0])
    names: dict[str, Any] = {}
    for number, part in enumerate(blocks(text, "python")):
        exec(compile(part, f"{PAGE.name}, block {number}", "exec"), names)

"""Comments in a config: folded, and never more than comments."""

from __future__ import annotations

from loraft.config.config_file import WIDTH, comment, commented
from loraft.config.yaml_nodes import read_yaml


def test_each_key_stands_below_its_comment_in_its_section() -> None:
    said = [("method", "lora", "How."), ("lora.r", 8, ""), ("lora.alpha", 16, "Twice."), ("data.train", "a", "Rows.")]
    assert "\n".join(commented(said)) == (
        "# How.\nmethod: lora\n\nlora:\n  r: 8\n  # Twice.\n  alpha: 16\n\ndata:\n  # Rows.\n  train: a"
    )


def test_a_long_comment_is_folded() -> None:
    lines = list(comment("word " * 60, "  ", hang="    "))
    assert all(line.startswith("  # ") and len(line) <= WIDTH for line in lines)
    assert lines[1].startswith("  #     word")


def test_nothing_in_a_comment_ends_it() -> None:
    text = "\n".join([*comment("a\nmethod: full\u2028method: full\x85method: full\x01\rmethod: full"), "seed: 1"])
    top, found = read_yaml(text, "c.yaml")
    assert found == []
    assert top is not None
    assert top.value == {"seed": 1}

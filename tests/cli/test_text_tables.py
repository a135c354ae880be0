"""Documents as tables."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loraft.cli.text_tables import cut_answers, document, facts, shown, text_table


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("peak_bytes", 2_100_000_000, "2.1 GB"),
        ("trained_share", 0.3141, "31.41 %"),
        ("last_learning_rate", 2e-5, "2.00e-5"),
        ("seconds", 252.0, "4m12s"),
        ("eval_loss", 1.5, "1.5000"),
        ("quantile", 0.5, "0.5"),
        ("layers", list(range(30)), "0 to 29"),
        ("layers", [0, 5, 31], "0, 5, 31"),
        ("names", [f"n{i}" for i in range(10)], "n0, n1, n2, n3, n4, n5, n6, n7, … 2 more"),
        ("names", [], "–"),
        ("best_step", None, "–"),
        ("offline", True, "yes"),
        ("cpu", {"cores": 2, "memory_bytes": 8_000_000_000}, "cores 2 · memory 8.0 GB"),
        ("text", "\x1b[2J", "␛[2J"),
    ],
)
def test_a_key_tells_the_unit(key: str, value: object, text: str) -> None:
    assert shown(key, value) == text


def test_an_option_is_named_for_the_answers_alone_that_it_cut() -> None:
    assert cut_answers(0, 0) == "0"
    assert "--max-new-tokens" not in cut_answers(2, 2)
    assert "positions" not in cut_answers(2, 0)
    assert all(words in cut_answers(3, 2) for words in ("--max-new-tokens", "positions"))


def drawn(*parts: object, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(*parts, sep="\n")
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_mappings_are_sections_lists_of_mappings_tables_and_the_rest_comes_last() -> None:
    parts = document(
        {"steps": 3, "data": {"rows_read": 8, "lengths": [{"quantile": 0.5, "tokens": 9}]}, "model": {}}, rest="run"
    )
    lines = [line for line in drawn(*parts) if line]
    assert lines[:2] == ["data", "  rows read  8"]
    assert lines[2] == "data: lengths"
    assert lines[3].split() == ["quantile", "tokens"]
    assert lines[5].split() == ["0.5", "9"]
    assert lines[6:] == ["model", "run", "  steps      3"]


def test_parts_of_memory_are_bytes_with_a_bar() -> None:
    lines = drawn(facts("memory", {"weights": 500_000, "logits": 0, "peak_bytes": 1_000_000}))
    assert lines[1].split() == ["weights", "500", "kB", "━" * 15]
    assert lines[2].split() == ["logits", "0", "B"]
    assert lines[3].split() == ["peak", "1.0", "MB"]


def test_a_narrow_terminal_folds_and_loses_nothing() -> None:
    path = "a/very/long/path/" * 8
    lines = drawn(facts("disk", {"folder": path}), width=40)
    assert all(len(line) <= 40 for line in lines)
    assert "".join(line[10:] for line in lines[1:]).strip() == path


ROWS = [("self_attn.q_proj", "0.18 %", "0.24 % in the layer 28 of the decoder"), ("output.dense", "5.19 %", "none")]


def test_names_and_numbers_stay_whole_and_sentences_are_broken() -> None:
    lines = drawn(text_table("moved", ("module", ">of ‖W‖", "farthest"), ROWS), width=46)
    assert lines[3] == "  self_attn.q_proj   0.18 %   0.24 % in the"
    assert lines[4].strip() == "layer 28 of the"
    assert max(map(len, lines)) <= 46


def test_where_nothing_else_is_left_names_are_broken_and_nothing_is_lost() -> None:
    lines = drawn(text_table("moved", ("module", ">of ‖W‖", "farthest"), ROWS), width=34)
    assert max(map(len, lines)) <= 34
    letters = "".join("".join(lines[3:]).split())
    assert sorted(letters) == sorted("".join("".join(row).replace(" ", "") for row in ROWS))

"""`docs/correctness.md` lists every silent mistake, and each test file that it names has a test of that number."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_laws import OWED, rows_named_in

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/correctness.md"
ROWS = re.findall(r"^\| (C\d+) \|.*\| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
"""The number of each row, and what its last column says."""


def test_each_row_stands_there_once() -> None:
    numbers = [int(row[1:]) for row, _ in ROWS]
    assert sorted(numbers) == list(range(1, max(numbers) + 1))


def test_each_row_that_is_built_is_held_by_the_tests_that_it_names() -> None:
    held = {row for row, tests in ROWS if not tests.startswith(("*in part*", "*not built yet*"))}
    assert set(OWED) <= held
    assert [row for row, tests in ROWS if row in held and "`tests/" not in tests] == []


def test_each_test_file_that_is_named_has_a_test_of_the_number() -> None:
    named = [(row, path) for row, tests in ROWS for path in re.findall(r"`(tests/[\w/]+\.py)`", tests)]
    assert [(row, path) for row, path in named if row not in rows_named_in(ROOT / path)] == []


def test_the_guarantees_name_rows_of_the_page() -> None:
    named = set(re.findall(r"\bC\d+\b", (ROOT / "docs/guarantees.md").read_text()))
    unbuilt = {row for row, tests in ROWS if tests.startswith("*not built yet*")}
    assert named == {row for row, _ in ROWS} - unbuilt

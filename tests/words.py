"""The words of messages, kept in one file: a test holds what happens, and the file how it is said.

After a message was changed, `pytest --renew-words FILE…` writes the file anew; its diff is what users will read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("words.json")


class Words:
    """What all tests of a session were told, beside what the file says that they are told."""

    def __init__(self, *, renewing: bool) -> None:
        self.renewing = renewing
        self.kept: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        self.collected: set[str] = set()
        self._asked: Counter[str] = Counter()

    def compare(self, test: str, said: str, hidden: Iterable[Path]) -> None:
        """Compare what a test was told with the file, or put it there; paths and the processor are `…` in it."""
        for folder in hidden:
            said = said.replace(str(folder), "…")
        said = re.sub(r"device cpu \([^)]*\)", "device cpu (…)", said)
        lines = [line.rstrip() for line in said.splitlines() if line.strip()]
        self._asked[test] += 1
        key = test if self._asked[test] == 1 else f"{test} ({self._asked[test]})"
        if self.renewing:
            self.kept[key] = lines
        else:
            assert self.kept.get(key) == lines, f"these are other words: pytest --renew-words {test.partition('[')[0]}"

    def stale(self) -> list[str]:
        """What the file has of tests that are not there any more, as far as their files were collected."""
        files = {test.partition("::")[0] for test in self.collected}
        tests = {key: re.sub(r" \(\d+\)$", "", key) for key in self.kept}
        return [key for key, test in tests.items() if test.partition("::")[0] in files and test not in self.collected]

    def save(self) -> None:
        """Write the file, without what is stale."""
        for key in self.stale():
            del self.kept[key]
        text = json.dumps(dict(sorted(self.kept.items())), indent=1, ensure_ascii=False)
        FILE.write_text(f"{text}\n", encoding="utf-8")


WORDS = pytest.StashKey[Words]()
Wording = Callable[[str], None]

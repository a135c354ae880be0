"""A plugin of pytest that prints how many cases of each promise were tried, and how many held."""

from __future__ import annotations

from collections import Counter

import pytest

TRIED = "tried"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table in Markdown, as docs/reliability.md shows it."""
    tried, held = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for promise, good in (case for name, case in report.user_properties if name == TRIED):
                tried[promise] += 1
                held[promise] += good
    terminalreporter.section("what was tried, and what held")
    terminalreporter.line("| promise | tried | held |\n| --- | ---: | ---: |")
    for promise in sorted(tried):
        terminalreporter.line(f"| {promise} | {tried[promise]:,} | {held[promise]:,} |")

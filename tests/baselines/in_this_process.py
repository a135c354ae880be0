"""What the processes of a comparison would answer, computed in this one: torch is here already."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any

import pytest

from loraft.baselines import compare_methods as comparing
from loraft.io.asked_process import Answer

Changed = Callable[[Answer], Answer]


def answering(monkeypatch: pytest.MonkeyPatch, changed: Changed = lambda answer: answer) -> list[comparing.Question]:
    """Let comparisons ask this process, each answer passed through `changed`; what they ask is in the list."""
    from loraft.baselines.measure_method import answer

    asked: list[comparing.Question] = []

    def answers(question: bytes) -> Generator[Answer]:
        asked.append(comparing.asked_by(question))
        told: list[Any] = []
        answer(asked[-1], lambda one: told.append(json.loads(json.dumps(one))))
        for one in told:
            yield changed({**one, "asked": asked[-1][1][0]})
            if one["kind"] == "ended":
                return

    monkeypatch.setattr(comparing, "answers", answers)
    return asked

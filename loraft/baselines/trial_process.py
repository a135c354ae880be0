"""The process that tries a method, and what it answers, however it ends."""

from __future__ import annotations

import os
from collections.abc import Generator

from loraft.errors import RunError
from loraft.io.asked_process import Answer, ProcessEndedError, answers_of
from loraft.models.remote_code import is_trusted

SERVE = "from loraft.baselines.measure_method import serve; serve()"
TRUSTED = "trusted"
"""The argument of a process that may run the code of models, as the one that starts it may."""


def answers(question: bytes) -> Generator[Answer]:
    """What a process answers to a question, as it comes; closing this ends the process.

    One that ends otherwise than it should says so in a last answer whose `kind` is `ended`.
    """
    try:
        yield from answers_of(SERVE, question, os.environ, *([TRUSTED] if is_trusted() else []))
    except ProcessEndedError as ended:
        yield {"kind": "ended", "error": RunError(str(ended)).as_json()}

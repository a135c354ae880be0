"""Regular expressions that somebody else wrote, matched in bounded time and memory.

An expression such as `((a+)+)+!` takes time that doubles with each character, and Python cannot interrupt it. So they
are matched in a process of its own, which is ended when its time is over.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

PLAIN = re.compile(r"[\w.-]*")
"""A name, or an expression that costs no more than one: it needs no process."""
MOST_SECONDS = 5.0
MOST_BYTES = 512_000_000
CHILD = f"""
import json, re, resource, sys
try:
    resource.setrlimit(resource.RLIMIT_AS, ({MOST_BYTES}, {MOST_BYTES}))
except (ValueError, OSError):
    pass
method, expressions, names = json.load(sys.stdin)
for expression in expressions:
    try:
        match = getattr(re.compile(expression), method)
        answer = [place for place, name in enumerate(names) if match(name)]
    except re.error as error:
        answer = f"is not a regular expression: {{error}}"
    except (RecursionError, MemoryError, OverflowError):
        answer = "is not a regular expression that can be used: it is too large"
    print(json.dumps(answer), flush=True)
"""

Method = Literal["match", "fullmatch"]


def matching(expressions: Sequence[str], names: Sequence[str], method: Method) -> list[set[str] | str]:
    """The names that each expression matches, or why it cannot be used.

    Args:
        expressions: What somebody wrote.
        names: What is compared with each.
        method: As in `re`: from the beginning on, or as a whole.
    """
    if not expressions:
        return []
    asked = json.dumps([method, list(expressions), list(names)])
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHILD],
            input=asked.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=MOST_SECONDS,
            check=False,
        )
        told, why = ended.stdout, "takes too much memory to match"
    except subprocess.TimeoutExpired as error:
        told, why = error.stdout or b"", f"takes more than {MOST_SECONDS:.0f} s to match the names of modules"
    answers = [json.loads(line) for line in told.splitlines()]
    found: list[set[str] | str] = [
        answer if isinstance(answer, str) else {names[place] for place in answer} for answer in answers
    ]
    behind = len(expressions) - len(found) - 1
    return found if behind < 0 else [*found, why, *["stands behind one that could not be matched"] * behind]

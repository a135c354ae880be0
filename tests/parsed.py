"""The library's files as trees: each is parsed and gone through once a process, however many laws look at it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def tree(path: Path) -> ast.Module:
    """What stands in a file."""
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Everything in a file, as `ast.walk` gives it."""
    return tuple(ast.walk(tree(path)))

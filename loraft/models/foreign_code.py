"""Code that comes with a model: named in its files, never run here, and never passed on.

`auto_map` in config.json or tokenizer_config.json names Python that transformers runs where somebody trusts it. What is
trained or merged here needs none of it, and whoever trusts what we saved has not looked at a stranger's code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

KEY = "auto_map"
FILES = ("config.json", "*_config.json")


def code_notes(*folders: Path) -> tuple[str, ...]:
    """A sentence about the files in folders that name code; none where none does."""
    read = (pair for folder in folders for pair in _read(folder))
    found = dict.fromkeys(file.name for file, values in read if _without(values) != values)
    if not found:
        return ()
    return (f"the model brings code of its own ({KEY} in {', '.join(found)}): it is neither run nor saved",)


def drop_code(folder: Path) -> None:
    """Take what names code out of the files of a model that is being saved."""
    for file, values in _read(folder):
        if (clean := _without(values)) != values:
            file.write_text(json.dumps(clean, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(folder: Path) -> Iterator[tuple[Path, object]]:
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern)}):
        try:
            yield file, json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # whoever needs the file tells that it cannot be read


def _without(value: object) -> object:
    """A value without the key, at any depth: a model's parts have configs of their own."""
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key != KEY}
    return [_without(inner) for inner in value] if isinstance(value, list) else value

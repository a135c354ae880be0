"""`key=value` arguments, written over a config before it is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from loraft.config.located import Document, Found, Place, dotted
from loraft.config.schema_info import path_of
from loraft.config.yaml_scalars import Value, in_words
from loraft.errors import ConfigError, Problem

EXAMPLES = "Write an override as training.max_steps=100 or lora.target_modules=[q_proj,v_proj]."


def apply_overrides(
    document: Document, overrides: Sequence[str], read_value: Callable[[str, str], Value]
) -> list[Found]:
    """Write each override over `document`; of two for the same key the later one counts.

    Args:
        document: The file's values, changed in place.
        overrides: Texts such as `training.max_steps=100` or `lora.target_modules=[q_proj,v_proj]`.
        read_value: Reads YAML 1.2 (the text, the name of its place), raising `ConfigError`.

    Returns:
        What is wrong with overrides that could not be applied.
    """
    found: list[Found] = []
    for number, override in enumerate(overrides, start=1):
        key, equals, text = override.partition("=")
        path = path_of(key.strip())
        # The value stays out of the place: it may be something that must not be printed.
        place = Place(number, 1, 1, f"override {dotted(path)}{'=…' if equals else ''}")
        if not equals or not all(path):
            found.append((place, Problem("is no key=value", place.text, remedy=EXAMPLES)))
            continue
        try:
            value = read_value(text, place.text)
        except ConfigError as error:
            found += [(place, replace(one, where=place.text, key=dotted(path))) for one in error.problems]
            continue
        obstacle = _obstacle(document, path)
        if obstacle is None:
            document.replace(path, value, place)
        else:
            message = f"cannot be set, as {obstacle} is {in_words(document.at(path_of(obstacle)))} in {document.name}"
            found.append((place, Problem(message, place.text, dotted(path), f"Override the whole of {obstacle}.")))
    return found


def _obstacle(document: Document, path: tuple[str, ...]) -> str | None:
    """What stands where the override needs a section."""
    above = (path[:depth] for depth in range(1, len(path)))
    return next((dotted(one) for one in above if not isinstance(document.at(one), dict | None)), None)

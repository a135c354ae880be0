"""A config as the text of a file: readable, and read back equal."""

from __future__ import annotations

import json
import re

from loraft.config.schema import RunConfig
from loraft.config.schema_info import idle_keys
from loraft.config.sections import NO_NULL, DataSource, StackLayers
from loraft.config.yaml_nodes import scalar

BARE = re.compile(r"[\w/.][\w/.@+-]*([: ][\w/.@+-]+)*", re.ASCII)
OTHERS_MISREAD = re.compile(r"(?i)y|n|yes|no|on|off|[-+.]?\d[\d_:.]*|\d{4}-\d\d?-.*|\.+")
"""Text that readers of YAML 1.1 take for a bool, a number or a date."""
TO_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def dump_config(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back equal, a blank line before each section.

    A section or key that method and task do not use is left out where it says nothing of its own.
    """
    lines: list[str] = []
    idle = idle_keys(config)
    for name, field in RunConfig.model_fields.items():
        value = getattr(config, name)
        if name in idle and value == field.default:
            continue
        if isinstance(value, str | int):
            lines.append(f"{name}: {inline(value)}")
            continue
        values = {
            key: getattr(value, key)
            for key, inner in type(value).model_fields.items()
            if f"{name}.{key}" not in idle or getattr(value, key) != inner.default
        }
        lines += ["", f"{name}:", *(f"  {key}: {inline(inner)}" for key, inner in values.items())]
    return "\n".join(lines) + "\n"


def inline(value: object) -> str:
    """A value of a config on one line, as short as it can be said: a source that says no more is its path."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], DataSource):
        (value,) = value
    if isinstance(value, DataSource):
        said = value.model_dump(exclude_defaults=True)
        plain = said.keys() == {"path"} and value.path.lower() not in NO_NULL  # which alone would be a slip for null
        value = value.path if plain else said
    elif isinstance(value, StackLayers):
        value = {stack: layers for stack, layers in value if layers is not None}
    match value:
        case str():
            return _text(value)
        case list() | tuple():
            return f"[{', '.join(map(inline, value))}]"
        case dict():
            return f"{{{', '.join(f'{_text(str(key))}: {inline(inner)}' for key, inner in value.items())}}}"
        case float() if not value.is_integer() or abs(value) >= 1e15:
            # 1e-05 is text to readers of YAML 1.1, 1.0e-05 is a number to all.
            digits = repr(value)
            return digits if "." in digits else digits.replace("e", ".0e")
        case None | bool() | int() | float():
            return json.dumps(int(value) if isinstance(value, float) else value)
        case _:
            raise TypeError(f"a config holds no {type(value).__name__}")


def _text(text: str) -> str:
    if BARE.fullmatch(text) and isinstance(scalar(text), str) and not OTHERS_MISREAD.fullmatch(text):
        return text
    return TO_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))

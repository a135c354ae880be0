"""A config as the text of a file: readable, and read back equal."""

from __future__ import annotations

import json
import re

from loraft.config.schema import DataSource, RunConfig, StackLayers
from loraft.config.unused_keys import idle_keys, unused_sections
from loraft.config.yaml_scalars import Value, scalar

BARE = re.compile(r"[\w/.][\w/.@+-]*([: ][\w/.@+-]+)*", re.ASCII)
OTHERS_MISREAD = re.compile(r"(?i)y|n|yes|no|on|off|[-+.]?\d[\d_:.]*|\d{4}-\d\d?-.*|\.+")
"""Text that readers of YAML 1.1 take for a bool, a number or a date."""
TO_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def written(config: RunConfig) -> str:
    """The config as YAML, a blank line before each section.

    A section or key that method and task do not use is left out where it says nothing of its own.
    """
    lines: list[str] = []
    idle = {*_idle_sections(config), *idle_keys(config)}
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


def _idle_sections(config: RunConfig) -> tuple[str, ...]:
    """The sections that the method does not use, set or not."""
    everything_set = config.model_copy(update={name: getattr(config, name) for name in RunConfig.model_fields})
    return unused_sections(everything_set)


def _short(value: object) -> Value:
    """Sources with no more than a path as that path, and a list of one as that one."""
    if isinstance(value, tuple):
        entries = [_short(entry) for entry in value]
        return entries[0] if len(entries) == 1 and isinstance(value[0], DataSource) else entries
    if isinstance(value, DataSource):
        said = value.model_dump(exclude_defaults=True)
        return value.path if set(said) == {"path"} else said
    if isinstance(value, StackLayers):
        return {stack: _short(layers) for stack, layers in value if layers is not None}
    if isinstance(value, dict):
        return {str(key): _short(inner) for key, inner in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds no {type(value).__name__}")


def inline(value: object) -> str:
    """A value of a config on one line, as short as it can be said."""
    return _inline(_short(value))


def _inline(value: Value) -> str:
    match value:
        case str():
            return _text(value)
        case list():
            return f"[{', '.join(_inline(entry) for entry in value)}]"
        case dict():
            return f"{{{', '.join(f'{_text(key)}: {_inline(inner)}' for key, inner in value.items())}}}"
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case float():
            # 1e-05 is text to readers of YAML 1.1, 1.0e-05 is a number to all.
            digits = repr(value)
            return digits if "." in digits else digits.replace("e", ".0e")
        case _:
            return json.dumps(value)


def _text(text: str) -> str:
    if BARE.fullmatch(text) and isinstance(scalar(text), str) and not OTHERS_MISREAD.fullmatch(text):
        return text
    return TO_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))

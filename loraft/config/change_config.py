"""A config with some of its values replaced, and its file, in which all else is as a person wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from loraft.config.schema import RunConfig


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values at dotted keys, as the mappings of a file."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        inner = found.setdefault(section, {}) if section else found
        assert isinstance(inner, dict)
        inner[name] = value
    return found


def with_values(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """The same config with other values at these keys, of sections or of their own; they are not checked."""
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    whole = sections.pop("", {})
    inner = {name: getattr(config, name).model_copy(update=changed) for name, changed in sections.items()}
    return config.model_copy(update={**whole, **inner})


def changed_text(path: Path, overrides: Sequence[str], values: Mapping[str, object]) -> str:
    """The text of a config file that `load_config` reads, with overrides and then `values` written at their keys."""
    yaml, plain = YAML(), YAML(typ="safe")
    yaml.preserve_quotes, yaml.width = True, 10_000
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(path.read_text(encoding="utf-8-sig"))
    given = {key: plain.load(text) for key, _, text in (override.partition("=") for override in overrides)}
    for key, value in {**given, **values}.items():
        *sections, name = key.strip().split(".")
        place = document
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[name] = value
    written = StringIO()
    yaml.dump(document, written)
    return written.getvalue()

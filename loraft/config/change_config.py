"""A config file with some of its values replaced, and all else as a person wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML


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

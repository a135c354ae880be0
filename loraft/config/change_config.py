"""A config with some of its values replaced, and its file, in which all else is as a person wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from loraft.config.config_file import read_override
from loraft.config.schema import RunConfig
from loraft.config.schema_info import path_of


def with_values(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """The same config with other values at these keys, of sections or of their own; they are not checked."""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        whole = {section: getattr(config, section).model_copy(update={name: value})} if section else {name: value}
        config = config.model_copy(update=whole)
    return config


def changed_text(path: Path, overrides: Sequence[str], values: Mapping[str, object]) -> str:
    """The text of a config file that `load_config` reads, with overrides and then `values` written at their keys."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 10_000
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(path.read_text(encoding="utf-8-sig"))
    given = [(at, node.value) for at, node, _ in map(read_override, overrides) if node is not None]
    for (*sections, name), value in [*given, *((path_of(key), value) for key, value in values.items())]:
        place = document
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[name] = value
    written = StringIO()
    yaml.dump(document, written)
    return written.getvalue()

"""The config that a command is given, read with its overrides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig


def read_config(path: str, overrides: list[str] | None) -> RunConfig:
    """The config with its overrides; says which of its sections and keys the method and the task leave unused.

    Raises:
        ConfigError: With every problem of the file and of the overrides.
    """
    from loraft.cli.console import print_note
    from loraft.config.config_file import load_config
    from loraft.config.schema_info import unused_keys

    config = load_config(Path(path), overrides or [])
    for key, by in unused_keys(config):
        print_note(f"{key} is not used by {by}")
    return config

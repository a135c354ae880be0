"""`loraft schema` and `loraft doctor`: what helps before the first config is written."""

from __future__ import annotations

from loraft.cli.console import print_json, waiting
from loraft.cli.options import JsonOption
from loraft.cli.text_tables import print_document


def schema() -> None:
    """Print the JSON schema of the config, for editors.

    Save it as loraft.schema.json and begin a config with the line
    "# yaml-language-server: $schema=loraft.schema.json": the editor then completes keys and marks mistakes.
    """
    from loraft.config.schema import RunConfig

    draft = "https://json-schema.org/draft/2020-12/schema"
    print_json({"$schema": draft, **RunConfig.model_json_schema(), "title": "loraft config"})


def doctor(as_json: JsonOption = False) -> None:
    """Tell what this machine can do.

    Versions, devices, what of bitsandbytes works here (each tried for real), free disk, cache and Hub.
    """
    with waiting("trying what works here"):
        from loraft.inspection.environment import examine

        parts = examine()
    if as_json:
        print_json(parts)
    else:
        print_document(parts, rest="machine")

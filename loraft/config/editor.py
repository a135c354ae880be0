"""The config as a JSON schema, so that editors complete and check it while it is written."""

from __future__ import annotations

from typing import Any

from loraft.config.schema import RunConfig


def config_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what a config file may hold, shorthands such as a bare path included."""
    schema = RunConfig.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "loraft config"}

"""`docs/guides/scaling.md` says what is so."""

from __future__ import annotations

from pathlib import Path

from loraft.config.distributed_section import DistributedSection

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs/guides/scaling.md").read_text(encoding="utf-8")


def test_it_names_every_key_and_its_default() -> None:
    for key, field in DistributedSection.model_fields.items():
        assert f"`distributed.{key}" in GUIDE, key
        if not isinstance(field.default, bool):
            assert str(field.default) in GUIDE, key

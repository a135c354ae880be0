"""docs/models.md is what the tables of the zoo say."""

from __future__ import annotations

from tests.zoo.models_page import PAGE, page
from tests.zoo.not_alone import TABLES_OF, of_this_version


@of_this_version
def test_the_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.zoo.models_page writes it"


def test_the_tables_are_of_the_version_that_is_pinned() -> None:
    """Else what is tested of them with no other version would be tested with none."""
    assert f"\ntransformers=={TABLES_OF}." in (PAGE.parents[1] / "constraints.txt").read_text()

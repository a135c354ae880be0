"""docs/models.md is what the tables of the zoo say."""

from __future__ import annotations

from tests.zoo.models_page import PAGE, page
from tests.zoo.not_alone import of_this_version


@of_this_version
def test_the_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.zoo.models_page writes it"

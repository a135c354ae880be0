"""The types of files that rows lie in: one table, and all that goes by the end of a name agrees with it."""

from __future__ import annotations

from typing import get_args

from loraft.config.config_file import DATA
from loraft.config.sections import DataSource
from loraft.io.jsonl import OTHER_FILES
from loraft.io.row_types import COMPRESSIONS, ROW_TYPES, Content
from loraft.rows.opening import OPENERS
from loraft.rows.readers import READERS
from tests.rows.files import PACKED, TYPES


def test_whatever_is_listed_is_read() -> None:
    assert {kind.content for kind in ROW_TYPES.values()} == set(READERS) == set(get_args(Content))
    assert set(COMPRESSIONS) == set(OPENERS)


def test_every_type_is_tried_and_told() -> None:
    tried = {kind.rpartition(" ")[2] for kind in TYPES}
    assert {end for end, kind in ROW_TYPES.items() if kind.content != "text"} == tried
    assert set(PACKED) == {"", *COMPRESSIONS}
    described = str(DataSource.model_fields["path"].description)
    assert [end for end in (*ROW_TYPES, *COMPRESSIONS) if end not in described] == []


def test_no_two_begin_alike() -> None:
    signs = [*(kind.begins for kind in ROW_TYPES.values() if kind.begins), *COMPRESSIONS.values()]
    assert [(one, other) for one in signs for other in signs if one is not other and one.startswith(other)] == []


def test_what_is_no_config_and_no_output() -> None:
    assert set(DATA) == {".csv", ".tsv", ".jsonl", ".parquet", ".xlsx", ".gz", ".bz2", ".zst"}
    assert set(OTHER_FILES) == set(DATA) - {".jsonl"}

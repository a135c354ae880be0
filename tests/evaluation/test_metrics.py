"""Figures, against values worked out by hand."""

import pytest

from loraft.evaluation.metrics import is_exact_match, is_valid_json


def test_exact_match_forgives_white_space_around_and_nothing_else() -> None:
    assert [is_exact_match(text, "a b") for text in (" a b\n", "a  b", "A b", "a b")] == [True, False, False, True]


@pytest.mark.parametrize("text", ['{"a": [1, null]}', " [] ", "3", '"x"'])
def test_json(text: str) -> None:
    assert is_valid_json(text)


@pytest.mark.parametrize("text", ["", "{'a': 1}", '{"a": 1} done', '{"a": NaN}', "[-Infinity]", "[" * 100_000])
def test_not_json(text: str) -> None:
    assert not is_valid_json(text)

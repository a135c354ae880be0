"""Figures, against values worked out by hand."""

import pytest

from loraft.evaluation.metrics import exact_match_rate, is_valid_json, valid_json_rate


def test_exact_match_forgives_white_space_around_and_nothing_else() -> None:
    assert exact_match_rate([" a b\n", "a  b", "A b", "a b"], ["a b"] * 4) == 0.5


@pytest.mark.parametrize("text", ['{"a": [1, null]}', " [] ", "3", '"x"'])
def test_json(text: str) -> None:
    assert is_valid_json(text)


@pytest.mark.parametrize("text", ["", "{'a': 1}", '{"a": 1} done', '{"a": NaN}', "[-Infinity]", "[" * 100_000])
def test_not_json(text: str) -> None:
    assert not is_valid_json(text)


def test_valid_json_rate_is_a_share() -> None:
    assert valid_json_rate(["{}", "{", "[]", "]"]) == 0.5


def test_nothing_has_no_figure() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        exact_match_rate([], [])
    with pytest.raises(ValueError, match="no texts"):
        valid_json_rate([])
    with pytest.raises(ValueError, match="longer"):
        exact_match_rate(["a"], ["a", "b"])

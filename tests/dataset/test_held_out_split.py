"""Which rows are held out: the share, by the seed, each class on both sides, and rows of one input on one."""

from __future__ import annotations

from collections import Counter

import pytest

from loraft.dataset.source_rows import digest_of_draw, held_out_rows
from loraft.dataset.statistics import contradictions
from loraft.errors import DataError
from loraft.tasks import TASKS
from loraft.tokenization.examples import Example


def texts(count: int) -> list[Example]:
    return [Example.of_text([1, number], [1, number], f"a:{number}") for number in range(count)]


def labelled(*counts: int) -> list[Example]:
    """So many rows of each class, no two with the same text."""
    classes = [number for number, count in enumerate(counts) for _ in range(count)]
    return [Example.of_class([7, place], number, f"a:{place}") for place, number in enumerate(classes)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("counts", [(100, 100), (180, 15, 5), (96, 2, 2), (50, 49, 1), (30, 30, 30, 5, 5)])
def test_every_class_is_on_both_sides(counts: tuple[int, ...], share: float, seed: int) -> None:
    rows = labelled(*counts)
    taken = held_out_rows(rows, TASKS["seq_cls"], share, seed)
    assert len(taken) == round(share * len(rows))
    held = Counter(row.labels[0] for row in rows if row.where in taken)
    for number, count in enumerate(counts):
        if count == 1:
            assert held[number] == 0  # the one there is is learned
            continue
        assert 1 <= held[number] < count
        assert abs(held[number] - share * count) <= max(1, len(counts) - 1)


def test_the_largest_classes_are_measured_where_the_share_is_too_small_for_all() -> None:
    rows = labelled(10, 30, 20)
    taken = held_out_rows(rows, TASKS["seq_cls"], 2 / 60, 0)
    assert sorted(row.labels[0] for row in rows if row.where in taken) == [1, 2]


def test_another_seed_draws_others_and_the_same_the_same() -> None:
    rows = texts(100)
    first = held_out_rows(rows, TASKS["causal_lm"], 0.1, 0)
    assert first == held_out_rows(rows, TASKS["causal_lm"], 0.1, 0)
    assert first != held_out_rows(rows, TASKS["causal_lm"], 0.1, 1)
    assert len(first) == 10
    of = [row for row in rows if row.where in first]
    assert digest_of_draw(of) == digest_of_draw([*reversed(of)]) != digest_of_draw(of[1:])


@pytest.mark.parametrize("seed", range(10))
def test_rows_of_one_input_are_on_one_side(seed: int) -> None:
    rows = [Example.of_text([1, number % 7], [1, number % 7], f"a:{number}") for number in range(70)]
    taken = held_out_rows(rows, TASKS["causal_lm"], 0.3, seed)
    sides = {number: {row.where in taken for row in rows if row.input_ids[1] == number} for number in range(7)}
    assert all(len(side) == 1 for side in sides.values())
    assert len(taken) == 20  # two groups of ten are the most that fit into the share of 21


def test_the_pieces_of_a_row_are_on_one_side() -> None:
    rows = [
        Example.of_text([number, piece], [number, piece], f"a:{number}") for number in range(10) for piece in range(3)
    ]
    assert len(held_out_rows(rows, TASKS["causal_lm"], 0.2, 0)) == 2


def test_rows_that_are_all_the_same_are_shared_all_the_same() -> None:
    rows = [Example.of_text([1], [1], f"a:{number}") for number in range(4)]
    assert len(held_out_rows(rows, TASKS["causal_lm"], 0.5, 0)) == 2
    with pytest.raises(DataError, match="one row cannot be shared"):
        held_out_rows(rows[:1], TASKS["causal_lm"], 0.5, 0)


def test_the_same_text_under_two_classes_is_found() -> None:
    rows = [Example.of_class([number % 3], number % 2, f"a:{number}") for number in range(6)]
    found = contradictions(rows, TASKS["seq_cls"])
    assert [(each.row, each.same_as) for each in found] == [("a:3", "a:0"), ("a:4", "a:1"), ("a:5", "a:2")]
    assert contradictions(rows[:3], TASKS["seq_cls"]) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_of_one_input_is_never_held_out_beyond_the_share(seed: int) -> None:
    rows = [Example.of_text([1, max(0, number - 900)], [1, 1], f"a:{number}") for number in range(1000)]
    assert len(held_out_rows(rows, TASKS["causal_lm"], 0.1, seed)) <= 100

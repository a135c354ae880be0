"""What loraft is measured by: each type is built, differentiated and trained by transformers and peft themselves."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest

from tests.zoo.alone import Failed, train_alone
from tests.zoo.models import ALL, GROUPS, MOST_USED
from tests.zoo.not_alone import NOT_ALONE, of_this_version, trained_alone
from tests.zoo.not_yet import NOT_YET

UNTOLD = [each for each in ALL if each in NOT_ALONE or each in NOT_YET]
"""The types of which `test_zoo` does not show all that they are trained by transformers and peft."""


@pytest.mark.slow
@pytest.mark.parametrize(("group", "model_type"), UNTOLD)
def test_transformers_and_peft_alone(group: str, model_type: str) -> None:
    """A type that begins to work fails here too: then its line in `not_alone.py` goes."""
    failed = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library says of its own models
        try:
            train_alone(model_type, group)
        except Failed as failure:
            failed = failure.step, str(failure)
    expected = NOT_ALONE.get((group, model_type))
    assert (failed and failed[0]) == (expected and expected[0]), failed


@of_this_version
def test_the_zoo_has_its_types() -> None:
    """177 causal types are trained by transformers and peft alone, and so is all that is used most."""
    trained = Counter(group for group, name in ALL if trained_alone(group, name))
    assert trained["causal"] >= 177
    assert trained["seq2seq"] >= 34
    assert trained["classification"] >= 124
    assert trained["multimodal"] >= 59
    assert set(MOST_USED) <= set(ALL)
    assert not set(MOST_USED) & set(NOT_ALONE)
    assert set(NOT_ALONE) <= {(group, name) for group, each in GROUPS.items() for name in each.model_types}

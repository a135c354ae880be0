"""The tree of errors, and the problems they hold."""

from __future__ import annotations

import inspect
import signal
from pathlib import Path

import pytest

from loraft import errors
from loraft.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    Interrupted,
    InvalidInputError,
    LoraftError,
    Problem,
    RunError,
)

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, LoraftError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_exit_codes_by_fault(kind: type[LoraftError]) -> None:
    if kind is not Interrupted:
        assert kind.exit_code == (2 if issubclass(kind, InvalidInputError) else 3)


def test_a_place_may_be_a_path() -> None:
    assert DataError("is wrong", where=Path("rows.jsonl")).problems == (Problem("is wrong", "rows.jsonl"),)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_docstring_draws_the_whole_tree(kind: type[LoraftError]) -> None:
    assert kind.__name__ in str(errors.__doc__)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("is wrong"), "is wrong"),
        (Problem("is wrong", key="lora.r"), "lora.r: is wrong"),
        (Problem("is wrong", "run.yaml:3:1", "lora.r", "Write 8."), "run.yaml:3:1 lora.r: is wrong\n  Write 8."),
    ],
)
def test_a_problem_as_text(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_problem_as_json() -> None:
    assert Problem("is wrong", where="rows.jsonl:3").as_dict() == {
        "message": "is wrong",
        "where": "rows.jsonl:3",
        "key": None,
        "remedy": None,
    }


def test_one_error_may_hold_several_problems() -> None:
    error = DataError.several(iter([Problem("first", "a:1"), Problem("second", "a:2")]))
    assert type(error) is DataError
    assert [problem.message for problem in error.problems] == ["first", "second"]
    assert str(error) == "a:1: first\na:2: second"


def test_one_problem_is_the_errors_text() -> None:
    error = ConfigError("is wrong", where="run.yaml", remedy="Mend it.")
    assert str(error) == "run.yaml: is wrong\n  Mend it."
    assert isinstance(error, InvalidInputError)
    assert issubclass(DiskFullError, RunError)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_a_signal_stopped_exits_with_its_number(number: int, code: int) -> None:
    assert Interrupted("stopped", signal_number=number).stopped_exit_code == code


def test_an_override_has_its_key_in_its_name_already() -> None:
    assert str(Problem("must be above 0", "override lora.r=…", "lora.r")) == "override lora.r=…: must be above 0"
    assert Problem("x", "override data.eval=…", "data.eval[1]").place == "override data.eval=… data.eval[1]"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_goes_to_another_process_as_json(kind: type[LoraftError]) -> None:
    if kind is Interrupted:
        error: LoraftError = Interrupted("stopped.", signal_number=signal.SIGTERM)
    else:
        error = kind.several([Problem("é is wrong", "a:1", "lora.r", "Write 8."), Problem("so is b", parameter="out")])
    error.told_by_main = True
    again = LoraftError.from_json(error.as_json())
    assert type(again) is kind
    assert (again.problems, str(again), vars(again)) == (error.problems, str(error), vars(error))


def test_a_class_that_another_module_has_arrives_as_the_nearest_that_all_know() -> None:
    class MissingRowError(DataError):
        """Something that only one module raises."""

    again = LoraftError.from_json(MissingRowError.several([Problem("a"), Problem("b", "c:2")]).as_json())
    assert type(again) is DataError
    assert again.problems == (Problem("a"), Problem("b", "c:2"))


def test_many_problems_are_told_in_short_by_the_first() -> None:
    assert ConfigError.several([Problem("first", "a:1")]).in_short == "first"
    assert ConfigError.several([Problem("first"), Problem("second")]).in_short == "first, and 1 more of the kind"

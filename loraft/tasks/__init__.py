"""What a model is trained for: one module a task, the one registry of them, and which format a task's rows are in.

A new task is a module with a subclass of `Task` and a line below, those first whose formats ask the least of the
columns; its name stands in `config.choices.TaskName`.
"""

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter

from loraft.config.choices import TASKS_OF_GROUP, RowFormat, TaskName
from loraft.errors import DataError
from loraft.rows.fields import COLUMNS, Columns, column_of, columns_of, has_columns, refuse_preferences
from loraft.tasks.causal_lm import CausalLM
from loraft.tasks.preference import Preference
from loraft.tasks.seq2seq_lm import Seq2SeqLM
from loraft.tasks.seq2seq_preference import Seq2SeqPreference
from loraft.tasks.seq_cls import SequenceClassification
from loraft.tasks.task import MetricFacts, Task

__all__ = ["METRIC_FACTS", "TASKS", "check_format", "check_names", "detect_format", "refuse_answers_to_compare"]

TASKS: Mapping[TaskName, Task] = {
    task.name: task for task in (CausalLM(), Preference(), Seq2SeqLM(), Seq2SeqPreference(), SequenceClassification())
}
"""Every task, by the name that a config gives it."""
METRIC_FACTS: Mapping[str, MetricFacts] = {
    name: facts for task in TASKS.values() for name, facts in {**task.metrics.always, **task.metrics.offered}.items()
}
"""What there is to know of every metric."""


def detect_format(columns: Collection[str], task: Task, renamed: Columns | None = None) -> RowFormat:
    """The first of the task's formats that `columns` are of; `renamed` says ours: theirs, and is used where it can be.

    Raises:
        DataError: No format fits; it names the columns found and those that each format needs. Or `renamed` has a
            name that no format knows.
    """
    theirs = renamed or {}
    formats = {name: COLUMNS[name] for name in task.formats}
    check_names(theirs, task)
    refuse_answers_to_compare(columns, task, theirs)
    if fitting := [name for name in formats if has_columns(columns, name, theirs)]:
        return next((name for name in fitting if {*theirs} <= {*columns_of(name)}), fitting[0])
    found = ", ".join(sorted(columns)) or "none"
    needs = "; ".join(f"{name}: {' or '.join(map(', '.join, needed))}" for name, needed in formats.items())
    others = [(other, each) for other in TASKS.values() for each in other.formats]
    fits = ((other, each) for other, each in others if has_columns(columns, each, theirs))
    tasks = [(other.group == task.group, len(COLUMNS[each][0]), other.name) for other, each in fits]
    hint = f" Rows with these columns fit task: {max(tasks, key=itemgetter(0, 1))[2]}." if tasks else ""
    if absent := [f"{name} is {there!r}" for name, there in theirs.items() if column_of(there, columns) not in columns]:
        hint = f" It says that {', '.join(absent)}, and there is no such column."
    hint = _of_another_case(columns, list(formats), theirs) or hint
    message = f"the columns are {found}, which is none of the formats that task {task.name} takes"
    remedy = f"The formats need these columns: {needs}. data.columns says what ours are called in the file.{hint}"
    raise DataError(message, key="data.format", remedy=remedy)


def refuse_answers_to_compare(columns: Collection[str], task: Task, renamed: Columns) -> None:
    """Refuse better and worse answers where a task learns none, and name the one that does.

    Raises:
        DataError: The columns are of such answers.
    """
    if not task.compares_answers:
        learning = [name for name in TASKS_OF_GROUP[task.group] if TASKS[name].compares_answers]
        refuse_preferences(columns, renamed, task.formats, learns_them=next(iter(learning), "preference"))


def check_names(renamed: Collection[str], task: Task) -> None:
    """Refuse names that are none of a column that the task's formats have.

    Raises:
        DataError: There is one; with those that are.
    """
    known = {column for name in task.formats for column in columns_of(name)}
    if unknown := [name for name in renamed if name not in known]:
        message = f"{', '.join(unknown)} is no column of ours"
        raise DataError(message, key="data.columns", remedy=f"ours are {', '.join(sorted(known))}")


def _of_another_case(columns: Collection[str], formats: Sequence[RowFormat], theirs: Columns) -> str:
    """What to say where the columns of a format are there, in other letters than ours, or with blanks."""
    by_small = {column.strip().lower(): column for column in columns}
    for name in formats:
        found = {ours: by_small[ours] for ours in columns_of(name) if ours not in columns and ours in by_small}
        if found and has_columns(columns, name, {**theirs, **found}):
            called = ", ".join(f"{ours} is {there!r}" for ours, there in found.items())
            return f" They differ in case or blanks alone: {called}."
    return ""


def check_format(row_format: RowFormat, task: Task) -> None:
    """Refuse a format that is not one of the task's.

    Raises:
        DataError: It is not; with those that are.
    """
    if row_format not in task.formats:
        message = f"task {task.name} takes no rows of format {row_format}"
        raise DataError(message, key="data.format", remedy=f"It takes {', '.join(task.formats)}.")

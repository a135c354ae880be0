"""What a file of rows holds, before there is a config: the tasks and formats that its columns fit, and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from loraft.config.choices import RowFormat, TaskName, TextBy
from loraft.config.sections import DataSource
from loraft.dataset.source_rows import shortened
from loraft.errors import DataError, Problem
from loraft.rows.fields import COLUMNS, Columns, Fields, column_of, columns_of, read_names, unread_columns
from loraft.rows.formats import LanguagePair, Record
from loraft.rows.other_names import ELSEWHERE
from loraft.rows.raw_rows import RowsRead, read_rows, text_by_of
from loraft.rows.row import Row
from loraft.rows.turn_keys import unread_keys
from loraft.tasks import TASKS, check_format, detect_format, refuse_answers_to_compare
from loraft.tasks.task import Task

READINGS = tuple((task, form) for task in reversed(list(TASKS.values())) for form in task.formats)
"""How rows may be read, the readings first that ask the most of the columns: `TASKS` has them the other way round."""
ANSWERS: Mapping[str, str] = {"prompt_completion": "completion", "preferences": "chosen", "unpaired": "completion"}
"""Which column of a format may stand behind a prompt as it is."""
AROUND_A_TURN = 16
"""Tokens that a chat template puts around a turn, or around all of them; a token of text has at least a byte."""


@dataclass(frozen=True)
class FormatMatch:
    """A reading of the rows, for a task and as a format; `columns` has our column names: theirs, where they differ."""

    task: TaskName
    format: RowFormat
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetProfile:
    """What a source of rows holds.

    Attributes:
        source: Where they lie, and what was said of them.
        rows: How many rows can be used.
        unusable: How many cannot be read, or do not say what such rows must.
        columns: The columns that some row has.
        unread: Those of them that nothing is read from, and such keys of turns and objects.
        fit: How they are read.
        longest_tokens: How many tokens the longest row has at most.
        languages: The languages of `translation` rows, those first that most rows have.
        labels: The classes and their rows, in the order of their numbers.
        run_together: Rows whose prompt and answer, which follow one another as they stand, have no space between.
        text_by: What of a plain text is a row; None where it is no plain text.
        notes: What there is to say about where the rows come from, a sentence each.
    """

    source: DataSource
    rows: int
    unusable: int
    columns: tuple[str, ...]
    unread: tuple[str, ...]
    fit: FormatMatch
    longest_tokens: int
    languages: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    run_together: int = 0
    text_by: TextBy | None = None
    notes: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """Our names of the columns that are read."""
        ours: dict[str, list[str]] = {}
        for name, theirs in self.fit.columns.items():  # a column of objects may hold several
            ours.setdefault(column_of(theirs, self.columns), []).append(name)
        read = (each for each in self.columns if each and each not in self.unread)
        return tuple(name for each in read for name in ours.get(each, [each]))


def profile_dataset(source: DataSource, *, tasks: Collection[TaskName] = ()) -> DatasetProfile:
    """Read a source and tell what it holds.

    The task is the one of `tasks`, or where they are none of all, that the columns fit best; where the source names no
    columns, names are proposed where they are others, and where it says no format, it is recognised.

    Raises:
        DataError: It cannot be read, it holds no row that can be used, or its columns fit nothing.
    """
    read = read_rows(source)
    if not read.rows:
        raise DataError.several(shortened(read.problems, remedy=None))
    try:
        fit = _fit(read.columns, tasks, source.columns, None if source.format == "auto" else source.format)
        fit = _as_turns(read, fit)
    except DataError as error:
        problem = error.problems[0]
        raise DataError(problem.message, where=source.path, parameter="data", remedy=problem.remedy) from None
    languages = _languages(read, fit)
    records, problems = _records(read, fit, languages)
    if not records:
        raise DataError.several(shortened(problems, remedy=None))
    labels = TASKS[fit.task].classes_in(records)
    if len(labels) == 1:
        only = f"the rows have only the class {next(iter(labels))!r}, and there is nothing to tell apart"
        wrong = shortened([*read.problems, *problems], remedy=None)
        raise DataError.several([*wrong, Problem(only, source.path, parameter="data")])
    return DatasetProfile(
        source=source,
        rows=len(records),
        unusable=len(read.problems) + len(problems),
        columns=read.columns,
        unread=_unread(read, fit),
        fit=fit,
        longest_tokens=max(_most_tokens(row, fit) for row in read.rows),
        languages=languages,
        labels=labels,
        run_together=_run_together(read, fit),
        text_by=text_by_of(source),
        notes=tuple(read.notes),
    )


def _unread(read: RowsRead, fit: FormatMatch) -> tuple[str, ...]:
    """The columns, and the keys of turns and objects, that nothing is read from."""
    names = dict.fromkeys(unread_columns(read.columns, fit.format, fit.columns, as_pair=TASKS[fit.task].translates))
    for row in read.rows:
        with suppress(DataError):  # what is wrong with a row is found when it is read
            names |= dict.fromkeys(unread_keys(row, fit.format, fit.columns))
    return tuple(filter(None, names))


def _fit(
    columns: Collection[str],
    tasks: Collection[TaskName],
    renamed: Columns,
    row_format: RowFormat | None,
) -> FormatMatch:
    """How the columns are read: by their names, or else by those that they may stand for.

    Raises:
        DataError: They fit nothing.
    """
    _check_names(columns, renamed)
    told_format, told_task = row_format is not None, len(tasks) == 1
    if told_task and not told_format:
        refuse_answers_to_compare(columns, TASKS[next(iter(tasks))], renamed)
    # Of a label beside other columns nobody knows what it says.
    labelled = {"prompt", "completion", "label"} <= {*columns}
    readings = [
        (each, form)
        for each, form in sorted(READINGS, key=lambda reading: reading[1] in reading[0].only_if_asked)
        if (not tasks or each.name in tasks) and row_format in (None, form)
        if told_format or tasks or form not in each.only_if_asked
        if told_format or told_task or labelled or form != "unpaired"
    ]
    heeding = [(each, form) for each, form in readings if {*renamed} <= {*columns_of(form)}]
    # Of a column by itself its name says less than those of two say together.
    guessed = sorted(heeding, key=lambda reading: max(map(len, COLUMNS[reading[1]])) == 1)
    for may_guess, those in ((False, heeding), (True, guessed)):
        for each, form in those:
            names = renamed or _other_names(columns, form, optional_only=not may_guess)
            with suppress(DataError):
                if detect_format(columns, each, names) == form:
                    return FormatMatch(_usual_task(form, readings).name, form, names)
    if not readings:
        assert row_format is not None
        check_format(row_format, TASKS[next(iter(tasks))])
    raise _fit_nothing(columns, readings, renamed)


def _usual_task(row_format: RowFormat, readings: Sequence[tuple[Task, RowFormat]]) -> Task:
    """Of the tasks that rows of a format may be read for the first, one that must be asked for by its format last."""
    order = [*TASKS]
    takes_it = (task for task, form in readings if form == row_format)
    return min(takes_it, key=lambda task: (row_format in task.only_if_asked, order.index(task.name)))


def _as_turns(read: RowsRead, fit: FormatMatch) -> FormatMatch:
    """The same, with prompts of text as instructions where rows have beside them what a chat template alone prints."""
    if fit.columns or fit.format not in ("preferences", "unpaired") or TASKS[fit.task].translates:
        return fit
    rows = [Fields(row, {}) for row in read.rows]
    printed = any(fields.optional(name) for fields in rows for name in ("system", "tools"))
    are_text = all(isinstance(fields.optional("prompt"), str) for fields in rows)
    return replace(fit, columns={"instruction": "prompt"}) if printed and are_text else fit


def _check_names(columns: Collection[str], renamed: Columns) -> None:
    ours = sorted({name for form in OURS for name in columns_of(form)})
    for name, theirs in renamed.items():
        if name not in ours:
            raise DataError(f"{name} is no column of ours", remedy=f"Ours are {', '.join(ours)}.")
        if column_of(theirs, columns) not in columns:
            raise DataError(f"there is no column {theirs!r}", remedy=f"The columns are {', '.join(columns)}.")


def _fit_nothing(columns: Collection[str], readings: Sequence[tuple[Task, RowFormat]], renamed: Columns) -> DataError:
    is_known = len({task.name for task, _ in readings}) == 1
    usual: RowFormat = "prompt_completion"
    form = next((form for _, form in readings if is_known and len(OURS[form]) > 1), usual)
    example = ", ".join(f"{ours!r}: THEIRS" for ours in _needed(form))
    needs = [f"{' and '.join(_needed(form))} ({task.name}, {form})" for task, form in readings]
    said = ", ".join(f"{theirs} as {ours}" for ours, theirs in renamed.items())
    return DataError(
        f"the columns are {', '.join(columns)}, and {f'with {said} ' if said else ''}they are those of no format",
        remedy=f"Say which are which, as in `columns={{{example}}}`. Ours are {'; '.join(needs)}.",
    )


def _needed(row_format: RowFormat) -> list[str]:
    """Our columns that rows of a format must have; the first of its alternatives."""
    return [name for name in OURS[row_format] if name in columns_of(row_format, optional=False)][:3]


def _other_names(columns: Collection[str], row_format: RowFormat, *, optional_only: bool) -> dict[str, str]:
    """Which of the columns may stand for those of a format, or for those that rows of it may have besides, one each."""
    ours = OURS[row_format]
    needed = columns_of(row_format, optional=False)
    lowered = {column.lower(): column for column in columns}
    found: dict[str, str] = {}
    for name in ours:
        names = read_names(columns, row_format, found)
        beside_a_prompt = "prompt" in columns and name not in names
        if name in columns or beside_a_prompt or (optional_only and name in needed):
            continue
        read = {*ours, *names}
        taken = {*found.values(), *(column for column in read if column in columns)}
        near = (lowered[other] for other in (name, *ELSEWHERE.get(name, ())) if other in lowered)
        if theirs := next((column for column in near if column not in taken), None):
            found[name] = theirs
    return found


OURS: Mapping[RowFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output", "input", "system"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "preferences": ("instruction", "chosen", "rejected"),
    "unpaired": ("instruction", "completion", "label", "messages"),
    "translation": ("source", "target"),
    "classification": ("text", "label", "text_pair"),
    "sharegpt": ("conversations",),
}
"""The columns of each format that may have other names."""


def _most_tokens(row: Row, fit: FormatMatch) -> int:
    """A bound for the tokens of what is read of a row: a byte of text is one at most."""
    fields = Fields(row, fit.columns)
    return sum(_size(fields.optional(name)) for name in {*columns_of(fit.format)}) + 2 * AROUND_A_TURN


def _size(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(_size(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return 0 if value is None else len(str(value).encode("utf-8", errors="replace")) + AROUND_A_TURN


def _languages(read: RowsRead, fit: FormatMatch) -> tuple[str, ...]:
    named = [fit.columns[name].partition(".")[2] for name in ("source", "target") if name in fit.columns]
    if named:
        return tuple(named) if len(named) == 2 and all(named) else ()
    counted = Counter[str]()
    for fields in (Fields(row, fit.columns) for row in read.rows) if fit.format == "translation" else ():
        if fields.has("translation"):
            with suppress(DataError):  # what is wrong with a row is found when it is read
                counted.update(fields.mapping("translation").keys())
    return tuple(name for name, _ in counted.most_common())


def _run_together(read: RowsRead, fit: FormatMatch) -> int:
    answer = ANSWERS.get(fit.format)
    if answer is None or "instruction" in fit.columns or TASKS[fit.task].translates:
        return 0
    rows = (Fields(row, fit.columns) for row in read.rows)
    pairs = ((fields.optional("prompt"), fields.optional(answer)) for fields in rows)
    texts = ((one, other) for one, other in pairs if isinstance(one, str) and isinstance(other, str))
    return sum(not (prompt[-1:].isspace() or completion[:1].isspace()) for prompt, completion in texts)


def _records(read: RowsRead, fit: FormatMatch, languages: Sequence[str]) -> tuple[list[Record], list[Problem]]:
    """What the rows say when they are read so, and what is wrong with those that say nothing."""
    records: list[Record] = []
    problems: list[Problem] = []
    for row in read.rows:
        try:
            records.append(TASKS[fit.task].record(row, fit.format, fit.columns, LanguagePair(*languages[:2])))
        except DataError as error:
            problems += error.problems
    return records, problems

"""From a file of rows to a first config: what was asked, what was found, and what stands to reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraft.config.choices import DEFAULT_TASK, TASK_OF_GROUP, TASKS_OF_GROUP, Method, TaskName
from loraft.config.sections import DataSource
from loraft.dataset.build import prepare
from loraft.dataset.dataset_profile import DatasetProfile, profile_dataset
from loraft.dataset.statistics import DataReport
from loraft.errors import ConfigError, DataError, ModelError
from loraft.figures import listed
from loraft.inspection.starter import Start, starter, starter_config
from loraft.io.atomic import write_whole
from loraft.io.paths import check_config_place
from loraft.io.row_types import ROW_TYPES
from loraft.models.builtin import BUILTINS
from loraft.models.hf_config import written_config
from loraft.models.load_model import load_tokenizer
from loraft.models.registry import FAMILIES, ModelSpec
from loraft.models.sources import at_hand
from loraft.rows.labels import told_of_no_class
from loraft.rows.other_names import beside_text
from loraft.rows.places import files_here
from loraft.rows.standard_input import STANDARD_INPUT
from loraft.tasks import TASKS

T5 = re.compile(r"(?<![a-z])t5", re.IGNORECASE)
"""T5 in the name of a model that is elsewhere, and neither mT5 nor ByT5: it was trained with words before sources."""
NO_LIMIT = 2**31 - 1


def check_place(path: Path, data: DataSource | None, *, overwrite: bool) -> None:
    """Refuse, before anything is read or asked, a file that a config cannot be written to.

    Raises:
        ConfigError: It is there already, is the file of the rows, has another ending, or there is no folder for it.
    """
    if data is None and path.suffix in ROW_TYPES and path.is_file():
        named = path.with_suffix(".yaml").name
        remedy = f"Name the config that is to be written, such as {named}, and the rows by `data`."
        raise ConfigError("holds rows, and is no place for a config", where=path, remedy=remedy)
    check_config_place(path, reads=() if data is None else files_here(data.path), overwrite=overwrite)


def tasks_of_model(model: str | None) -> tuple[TaskName, ...]:
    """What a model that is at hand is trained for, the usual task first; nothing where its kind is not known."""
    family = None if model is None else _family(model)
    return () if family is None else TASKS_OF_GROUP[family.group]


def start(
    path: Path,
    *,
    task: TaskName | None = None,
    method: Method = "lora",
    model: str | None = None,
    data: DataSource | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a config that `check` passes, from what is known.

    Args:
        path: Where it is written.
        task: What is to be learned; None is what the model is for, or what the rows fit best.
        method: How.
        model: The base model; None is a small one for the task.
        data: The rows; None is an example. Where it says neither columns nor format, both are proposed.
        overwrite: Replace the file that is there.

    Returns:
        What was written and where, as JSON shows it; `notes` are what was decided and found, a sentence each.

    Raises:
        ConfigError: The file is there already, or the model is not for the task.
        DataError: The rows cannot be read, fit nothing, or the model's tokenizer and template make nothing of them.
    """
    check_place(path, data, overwrite=overwrite)
    tasks: tuple[TaskName, ...] = tasks_of_model(model) if task is None else (task,)
    found = None if data is None else profile_dataset(data, tasks=tasks)
    likely = found.fit.task if found else next(iter(tasks), DEFAULT_TASK)
    model = model or TASKS[likely].starter_model
    _check_model(model, likely)
    chosen = _counted(_chosen(likely, method, model, found))
    try:
        write_whole(path, starter(chosen, path))
    except OSError as error:
        remedy = "Name a file in another folder."
        raise ConfigError(f"cannot be written: {error.strerror}", where=path, remedy=remedy) from error
    told = ("task", "method", "model", "train", "name", "split", "format", "columns", "rows")
    return {"config": str(path), **{key: getattr(chosen, key) for key in told}, "notes": _notes(found, chosen)}


def _chosen(task: TaskName, method: Method, model: str, found: DatasetProfile | None) -> Start:
    positions = _architecture(model).get("max_position_embeddings")
    most = positions if isinstance(positions, int) and positions > 1 else None
    if found is None:
        train, row_format = TASKS[task].starter_rows
        return Start(task=task, method=method, model=model, train=train, format=row_format, positions=most)
    family = _family(model)
    return Start(
        task=task,
        method=method,
        model=model,
        train=found.source.path,
        name=found.source.name,
        split=found.source.split,
        format=found.fit.format,
        columns=found.fit.columns,
        read=found.read,
        rows=found.rows,
        longest_tokens=found.longest_tokens,
        positions=most,
        languages=found.languages,
        labels=found.labels,
        prefixed=family.prefixed if family else T5.search(model) is not None,
        bad=found.unusable,
        text_by=found.text_by,
    )


def _counted(chosen: Start) -> Start:
    """The same with the length of the longest row, where the model is at hand.

    Raises:
        DataError: Rows cannot be rendered: `check` would refuse them.
    """
    if chosen.rows is None or at_hand(chosen.model) is None:
        return chosen
    config = starter_config(replace(chosen, longest_tokens=None))
    try:
        tokenizer = load_tokenizer(config.model, TASKS[chosen.task].group)
    except ModelError:  # `check` says what is wrong with it
        return chosen

    def report(on_bad_row: str) -> DataReport:
        whole = {"max_length": NO_LIMIT, "eval": None, "on_bad_row": on_bad_row}
        return prepare(config.model_copy(update={"data": config.data.model_copy(update=whole)}), tokenizer).report

    try:
        found = report("skip")
    except DataError:
        found = report("error")  # none is left: why each is bad
    longest = max(part.longest for part in (found.length, found.target_length) if part is not None)
    if chosen.positions is not None and found.length.shortest > chosen.positions and chosen.format != "text":
        shortest, remedy = found.length.shortest, "Name a model that reads longer texts, or shorten the rows."
        message = f"every row has more tokens ({shortest:,} and more) than the model reads ({chosen.positions:,})"
        raise DataError(message, where=chosen.train, parameter="data", remedy=remedy)
    return replace(chosen, longest_tokens=longest, counted=True, bad=sum(source.bad for source in found.sources))


def _check_model(model: str, task: TaskName) -> None:
    family = _family(model)
    if family is not None and family.model_type not in TASKS[task].families:
        message = f"is of type {family.model_type}, which is not trained for task {task}"
        other, model_for_it = TASK_OF_GROUP[family.group], TASKS[task].starter_model
        remedy = f"Write `task={other!r}`, or name another model, such as {model_for_it}."
        raise ConfigError(message, where=model, parameter="model", remedy=remedy)


def _family(model: str) -> ModelSpec | None:
    return FAMILIES.get(str(_architecture(model).get("model_type")))


def _architecture(model: str) -> Mapping[str, object]:
    """The config.json of a folder; of a builtin that is not here yet what is known, and nothing of others."""
    folder = at_hand(model)
    if folder is None:
        builtin = BUILTINS.get(model.removeprefix("builtin:")) if model.startswith("builtin:") else None
        if builtin is None:
            return {}
        return {"model_type": builtin.model_type, "max_position_embeddings": builtin.positions}
    try:
        return written_config(folder / "config.json")
    except (OSError, ModelError):
        return {}


def _notes(found: DatasetProfile | None, chosen: Start) -> tuple[str, ...]:
    if found is None:
        what = "an example" if chosen.train.startswith("builtin:") else "a file that you have to write"
        return (f"no rows were named with `data`: data.train is {chosen.train}, {what}",)
    notes = [*found.notes]
    if found.source.path == STANDARD_INPUT:
        notes.append("data.train is -, standard input: pipe the rows into each command that reads the config")
    if names := ", ".join(f"{theirs} as {ours}" for ours, theirs in found.fit.columns.items() if ours != theirs):
        notes.append(f"the columns of {found.source.path} are read by other names: {names}")
    if found.unread:
        ways = " (`columns` says which are which)" if any("[]." not in name for name in found.unread) else ""
        notes.append(f"nothing is read from {listed(found.unread)}{ways}")
    if found.fit.format == "text" and (more := beside_text(found.unread, found.fit.columns.get("text", "text"))):
        notes.append(f"{more.said}: `columns={dict(more.columns)}`" if more.columns else more.said)
    if said := told_of_no_class([*found.labels]):
        notes.append(said)
    if found.unusable:
        rows = "1 row" if found.unusable == 1 else f"{found.unusable} rows"
        notes.append(f"{rows} of {found.source.path} cannot be used: `loraft.check` says why")
    if found.run_together:
        instead = {"prompt": "instruction"}
        if found.fit.format == "prompt_completion":
            instead["completion"] = "output"
        columns = {**{ours: ours for ours in instead}, **found.fit.columns}
        as_turns = {instead.get(ours, ours): theirs for ours, theirs in columns.items()}
        notes.append(
            f"prompt and answer follow one another as they stand, and in {found.run_together} of {found.rows} rows "
            f"nothing is between them; a chat template keeps them apart with `columns={as_turns}`"
        )
    if len(found.languages) > 2:
        notes.append(f"the rows have {len(found.languages)} languages: data.source_lang and data.target_lang are two")
    return tuple(notes)

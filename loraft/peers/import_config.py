"""From a file of another tool to a config: translated key by key, checked, and written with comments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loraft.config.config_file import Said, comment, commented, config_of, inline
from loraft.config.schema import RunConfig
from loraft.config.schema_info import KEYS
from loraft.config.yaml_nodes import Value
from loraft.errors import ConfigError, Problem
from loraft.io.atomic import write_whole
from loraft.io.paths import check_config_place
from loraft.io.secrets import redacted, redacted_all
from loraft.peers import axolotl_rows, llama_factory_rows, trl_rows
from loraft.peers.adapter_keys import translate_method
from loraft.peers.foreign_file import NAMES, ForeignFile, Peer, read_foreign_file
from loraft.peers.preference_keys import refuse_without_a_reference, translate_task
from loraft.peers.training_keys import translate_training
from loraft.peers.translation import TranslatedKey, Translation

ROWS: Mapping[Peer, Callable[[Translation], None]] = {
    "axolotl": axolotl_rows.translate_rows,
    "llama-factory": llama_factory_rows.translate_rows,
    "trl": trl_rows.translate_rows,
}
ORDER = {key: number for number, key in enumerate(KEYS)}
MODEL: Mapping[Peer, str] = {
    "axolotl": "base_model", "llama-factory": "model_name_or_path", "trl": "model_name_or_path",
}  # fmt: skip
"""The key of each tool that names the base."""
ELSEWHERE = ("model", "model_name", "model_id", "pretrained_model_name_or_path")
"""What it is called where the file is of another tool, or of another version."""
TRAIN: Mapping[Peer, tuple[str, ...]] = {
    "axolotl": ("datasets", "pretraining_dataset"), "llama-factory": ("dataset",), "trl": ("dataset_name", "datasets"),
}  # fmt: skip
"""The keys of each tool that name the rows."""


@dataclass(frozen=True)
class ImportedConfig:
    """A config that was made of another tool's file.

    Attributes:
        rows: What became of each key, in the order of the file; what the tool does of itself stands at the end. They
            hold no secrets.
        config: What they come to.
        text: The same as a file, with comments.
    """

    source: Path
    peer: Peer
    rows: tuple[TranslatedKey, ...]
    config: RunConfig
    text: str


def import_config(
    source: Path,
    target: Path | None = None,
    *,
    peer: Peer | None = None,
    overwrite: bool = False,
    words: Callable[[str], str] = str,
) -> ImportedConfig:
    """Translate a file of another tool, and write the config to `target` where one is named.

    Args:
        source: A YAML file, or one that holds a command line.
        target: Where the config is written; None writes nothing.
        peer: Whose file it is; None recognises it by its keys.
        overwrite: Replace the file that is there.
        words: Says in a comment what is called in Python as the reader of the file does it.

    Raises:
        ConfigError: The file cannot be read or recognised, asks for a training that loraft does not have, or names
            neither a model nor rows; or `target` is there already or cannot be written.
    """
    if target is not None:
        check_config_place(target, reads=(source,), overwrite=overwrite)
    done = import_file(read_foreign_file(source, peer), target, words)
    if target is not None:
        try:
            write_whole(target, done.text)
        except OSError as error:
            remedy = "Name a file in another folder."
            raise ConfigError(f"cannot be written: {error.strerror}", where=target, remedy=remedy) from error
    return done


def import_file(file: ForeignFile, target: Path | None = None, words: Callable[[str], str] = str) -> ImportedConfig:
    """Translate a file that is read; `target` is how its heading calls what is written, and `words` says its comments.

    Raises:
        ConfigError: The file asks for a training that loraft does not have, or names neither a model nor rows.
    """
    rows, config = _checked(file, translated(file))
    worded = [replace(row, why=words(row.why)) for row in rows]
    text = redacted(_text(file, worded, target or file.path.with_suffix(".yaml")))
    return ImportedConfig(file.path, file.peer, tuple(map(_without_secrets, rows)), config, text)


def _without_secrets(row: TranslatedKey) -> TranslatedKey:
    facts = vars(row) | {"value": redacted_all(row.value, row.key)}
    return TranslatedKey(**redacted_all(facts))


def translated(file: ForeignFile) -> list[TranslatedKey]:
    """What became of each key of a file, each value as it was translated, allowed or not.

    Raises:
        ConfigError: The file asks for a training that loraft does not have, or names neither a model nor rows.
    """
    translation = Translation(file)
    _refuse_without_a_model(translation)
    translate_task(translation)
    _refuse_without_rows(translation)
    translate_method(translation)
    refuse_without_a_reference(translation)
    ROWS[file.peer](translation)
    translate_training(translation)
    order = {key.written: number for number, key in enumerate(file.keys.values())}
    return sorted(translation.finished(), key=lambda row: order.get(row.key.partition("[")[0], len(order)))


def _refuse_without_a_model(translation: Translation) -> None:
    file = translation.file
    if not file.keys:
        raise ConfigError("says nothing", where=file.path)
    if translation.value(*MODEL.values()) is not None:
        return
    for name in ELSEWHERE:
        if translation.value(name) is not None:
            remedy = "Files of other tools, and of other versions, are not read: `loraft.init` begins a config."
            translation.refuse(
                name, f"is no key of {translation.tool}, which calls its base {MODEL[file.peer]}", remedy
            )
    message = f"names no base model ({MODEL[file.peer]})"
    raise ConfigError(message, where=file.path, remedy="Name it there, a Hub id or a folder.")


def _refuse_without_rows(translation: Translation) -> None:
    names = TRAIN[translation.peer]
    if translation.value(*names) is not None:
        return
    for name, command in (("export_dir", "merge"), ("infer_backend", "chat"), ("do_predict", "evaluate")):
        if translation.value(name):
            translation.refuse(name, "is of a file that trains nothing", f"loraft {command} does what it is for.")
    message = f"names no rows to learn from ({' or '.join(names)})"
    raise ConfigError(message, where=translation.file.path, remedy="Name them there, or write data.train by hand.")


def _checked(file: ForeignFile, rows: list[TranslatedKey]) -> tuple[list[TranslatedKey], RunConfig]:
    """The rows without what the schema refuses, which is told as the reason, and the config that is left."""
    for _ in rows:
        try:
            return rows, config_of(_said(rows), "the translation")
        except ConfigError as error:
            problems = error.problems
        wrong = {".".join((problem.key or "").partition("[")[0].split(".")[:2]): problem for problem in problems}
        found = [_without(row, wrong) for row in rows]
        if found == rows:
            break
        rows = found
    raise ConfigError.several(replace(problem, where=str(file.path)) for problem in problems)


def _without(row: TranslatedKey, wrong: Mapping[str, Problem]) -> TranslatedKey:
    problems = [wrong[key] for key in row.becomes if key in wrong]
    if not problems:
        return row
    key, message = problems[0].key, problems[0].message
    kept = {name: value for name, value in row.becomes.items() if name not in wrong}
    return replace(row, becomes=kept, why=f"{key} {message}; its default stands")


def _text(file: ForeignFile, rows: list[TranslatedKey], target: Path) -> str:
    """The config as a file: each key below what it came from, and at the end what was left out."""
    tool = NAMES[file.peer]
    lines = [
        f"# Made of {file.path.name}, a file of {tool}.",
        "#",
        f"#   loraft check {target.name}     what can be known before the first step",
        f"#   loraft train {target.name}     trains",
    ]
    lines += ["", *commented(_said(rows))]
    left = [row for row in rows if not row.becomes and row.key and row.why]
    if left:
        lines += ["", f"# What {file.path.name} says besides, and why it is not written here:"]
        for row in left:
            lines += comment(f"  {row.key}: {shown(row.value)} — {row.why}", hang="      ")
    return "\n".join(lines) + "\n"


def _said(rows: list[TranslatedKey]) -> Iterator[Said]:
    """The keys of the config in the schema's order, each with what it came from."""
    becomes = {key: value for row in rows for key, value in row.becomes.items()}  # of two the later one counts
    for key, value in sorted(becomes.items(), key=lambda item: ORDER[item[0]]):
        row = [row for row in rows if key in row.becomes][-1]
        says_so = not row.why and row.key == key.rpartition(".")[2] and row.value == value
        origin = f"{row.key}: {shown(row.value)}" if not says_so else ""
        if not row.key:
            yield key, value, f"{row.why[0].upper()}{row.why[1:]}."
        else:
            yield key, value, "; ".join(filter(None, (origin, row.why)))


def shown(value: Value) -> str:
    """A value of another tool on one line, cut where it is long, and without the secrets in it."""
    text = redacted(json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else inline(value))
    return text if len(text) <= 60 else f"{text[:59]}…"

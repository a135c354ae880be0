"""The datasets of LLaMA-Factory: names that a dataset_info.json explains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraft.config.yaml_nodes import Value
from loraft.errors import ConfigError
from loraft.peers.row_sources import Source, write_evaluation, written_sources
from loraft.peers.translation import Translation

INFO = "dataset_info.json"
REMOTE = "REMOTE:"
"""How a folder begins that is a dataset of the Hub."""
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "tools": "tools"}
OF_TURNS = {"messages": "conversations", "system": "system", "tools": "tools"}
"""Their names of columns of instructions and of conversations, and ours."""
NOT_READ = {
    **dict.fromkeys(("images", "videos", "audios"), "loraft trains on text alone"),
    "history": "earlier turns are read from messages: rewrite the rows as conversations",
}
"""Columns that nothing here is read from, and why."""
ELSEWHERE = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
"""Keys that name rows which are neither a file nor a dataset of the Hub."""
TURNS = ({"role_tag": "from", "content_tag": "value"}, {"role_tag": "role", "content_tag": "content"})
"""The keys of a turn that are read without being named."""


def translate_rows(translation: Translation) -> None:
    """`dataset` and `eval_dataset`, by the dataset_info.json of `dataset_dir`, and what is evaluated.

    Raises:
        ConfigError: A file of explanations cannot be read, or a dataset is one of preferences.
    """
    folder = translation.value("dataset_dir")
    if str(folder).startswith(REMOTE):
        folder = f"hf://datasets/{str(folder).removeprefix(REMOTE)}"
    for name, ours in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        said = translation.value(name)
        if said is None:
            continue
        names = [str(each).strip() for each in (said if isinstance(said, list) else str(said).split(","))]
        known = _explained(translation, folder)
        sources = [_source(translation, name, each, known, str(folder or "data")) for each in names if each]
        guessed = [each for each in names if each not in known] if known is not None else names
        why = f"{INFO} was not found: write the file or the Hub id of each" if known is None else ""
        if known is not None and guessed:
            why = f"{INFO} does not have {', '.join(guessed)}: write the file or the Hub id"
        if folder == "ONLINE":
            why = ""
        translation.write(name, {ours: written_sources(sources)}, why)
    if folder is not None:
        translation.leave("dataset_dir", "data.train names the files themselves")
    write_evaluation(translation, "val_size", "eval_dataset")
    if translation.value("packing") is True or translation.value("neat_packing") is True:
        for name in ("packing", "neat_packing"):
            translation.write(name, {"data.packing": "fill"}, "rows never see one another")
    elif translation.value("packing") is not None:
        translation.write("packing", {"data.packing": "auto"})
    if translation.value("stage") == "pt":
        translation.leave("template", "whole texts are learned as they stand")


def _explained(translation: Translation, folder: Value) -> Mapping[str, Any] | None:
    """What dataset_info.json says; None where there is none near the file."""
    if folder == "ONLINE":
        return {}
    near = translation.file.path.parent
    name = str(folder or "data")
    places = [near / name / INFO, Path(name) / INFO, *([] if folder else [near / INFO])]
    for place in places:
        if not place.is_file():
            continue
        try:
            known = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be read: {error}", where=str(place), remedy="It must hold JSON.") from None
        if isinstance(known, dict):
            return {key: value for key, value in known.items() if isinstance(value, dict)} | {
                "": {"": str(place.parent)}
            }
        raise ConfigError("must hold a mapping of datasets", where=str(place))
    return None


def _source(translation: Translation, name: str, dataset: str, known: Mapping[str, Any] | None, folder: str) -> Source:
    if known is None or dataset not in known:
        return {"path": dataset if folder == "ONLINE" or "/" in dataset else f"{folder}/{dataset}.json"}
    said = known[dataset]
    columns = said.get("columns") if isinstance(said.get("columns"), dict) else {}
    _refuse_other_rows(translation, name, dataset, pairs=bool(said.get("ranking")), labels="kto_tag" in columns)
    source = _place(said, dataset, known[""][""])
    _tell_other_places(translation, name, dataset, said)
    for theirs, ours in (("subset", "name"), ("split", "split"), ("num_samples", "limit")):
        if said.get(theirs) is not None:
            source[ours] = said[theirs]
    formatting = "sharegpt" if said.get("formatting") in ("sharegpt", "openai") else "alpaca"
    learns_texts = translation.value("stage") == "pt" and formatting == "alpaca"
    source["format"] = translation.compared_as if translation.compares else "text" if learns_texts else formatting
    if learns_texts:
        renamed = _column_of_texts(columns)
    elif translation.compares:
        renamed = _columns_of_answers(formatting, columns, labelled=translation.compared_as == "unpaired")
    else:
        renamed = _columns(formatting, columns)
    if renamed:
        source["columns"] = renamed
    for key, why in NOT_READ.items():
        if columns.get(key):
            translation.detail(name, f"{dataset}.columns.{key}", columns[key], why)
    tags = said.get("tags")
    if isinstance(tags, dict) and formatting == "sharegpt":
        keys = {key: tags.get(key, TURNS[0][key]) for key in TURNS[0]}
        if keys not in TURNS:
            why = "a turn has from and value, or role and content: rename those of the rows"
            translation.detail(name, f"{dataset}.tags", "…", why)
    return source


def _refuse_other_rows(translation: Translation, name: str, dataset: str, *, pairs: bool, labels: bool) -> None:
    """Refuse pairs, or answers with a label, where the run learns no such rows, and other rows where it does.

    Raises:
        ConfigError: That is so.
    """
    loss, what = translation.loss, ""
    if pairs != (loss not in (None, "kto")):
        what = "pairs of answers" if pairs else "no pairs of answers (ranking)"
    elif labels != (loss == "kto"):
        what = "answers that a label calls good or bad" if labels else "no labels of answers (kto_tag)"
    if what:
        translation.refuse(name, f"{dataset} holds {what}", "Name another dataset, or another stage.")


def _columns_of_answers(row_format: Value, said: Mapping[str, Any], *, labelled: bool) -> dict[str, Value]:
    """Our names of columns whose answers are compared: theirs, where they differ."""
    names = {"system": "system", "tools": "tools"}
    if row_format == "sharegpt":
        names["messages"] = "messages" if labelled else "prompt"
    else:
        names |= {"prompt": "instruction", "query": "input"}
    if labelled:
        names |= {"kto_tag": "label"} if row_format == "sharegpt" else {"kto_tag": "label", "response": "completion"}
    else:
        names |= {"chosen": "chosen", "rejected": "rejected"}
    otherwise = {"messages": "conversations", "response": "output"}
    found = {ours: str(said.get(theirs) or otherwise.get(theirs, ours)) for theirs, ours in names.items()}
    # An instruction is named, for a column `prompt` would come first.
    return {ours: theirs for ours, theirs in found.items() if ours != theirs or ours == "instruction"}


def _place(said: Mapping[str, Any], dataset: str, folder: str) -> Source:
    hub = said.get("hf_hub_url")
    if isinstance(hub, str):
        return {"path": hub}
    named = said.get("file_name")
    return {"path": str(Path(folder) / (named if isinstance(named, str) else dataset))}


def _tell_other_places(translation: Translation, name: str, dataset: str, said: Mapping[str, Any]) -> None:
    for key in ("folder",) if "hf_hub_url" in said else ("folder", *ELSEWHERE):
        if said.get(key):
            translation.detail(name, f"{dataset}.{key}", said[key], "write the address or the path of each file")


def _column_of_texts(said: Mapping[str, Any]) -> dict[str, Value]:
    """Where texts that are learned whole stand: in the column of instructions."""
    theirs = str(said.get("prompt") or COLUMNS["prompt"])
    return {} if theirs == "text" else {"text": theirs}


def _columns(row_format: Value, said: Mapping[str, Any]) -> dict[str, Value]:
    ours = OF_TURNS if row_format == "sharegpt" else COLUMNS
    return {ours[key]: str(value) for key, value in said.items() if key in ours and value and ours[key] != value}

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
BESIDE = {"system": "system", "tools": "tools"}
COLUMNS: Mapping[tuple[str, str | None], Mapping[str, str]] = {
    ("alpaca", "text"): {"prompt": "text"},
    ("alpaca", None): {"prompt": "instruction", "query": "input", "response": "output", **BESIDE},
    ("alpaca", "preferences"): {
        "prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected", **BESIDE,
    },
    ("alpaca", "unpaired"): {
        "prompt": "instruction", "query": "input", "kto_tag": "label", "response": "completion", **BESIDE,
    },
    ("sharegpt", None): {"messages": "conversations", **BESIDE},
    ("sharegpt", "preferences"): {"messages": "prompt", "chosen": "chosen", "rejected": "rejected", **BESIDE},
    ("sharegpt", "unpaired"): {"messages": "messages", "kto_tag": "label", **BESIDE},
}  # fmt: skip
"""Their names of columns and ours, by how their rows are formatted and by what is learned of them here."""
UNNAMED = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
"""What the columns are called in a file where nothing is said."""
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
        why = f"{INFO} was not found: write the file or the Hub id of each" if known is None else ""
        if folder != "ONLINE" and (guessed := [each for each in names if known is not None and each not in known]):
            why = f"{INFO} does not have {', '.join(guessed)}: write the file or the Hub id"
        translation.write(name, {ours: written_sources(sources)}, why)
    if folder is not None:
        translation.leave("dataset_dir", "data.train names the files themselves")
    write_evaluation(translation, "val_size", "eval_dataset")
    packs = ("packing", "neat_packing")
    if any(translation.value(name) is True for name in packs):
        for name in packs:
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
            raise ConfigError(f"cannot be read: {error}", where=place, remedy="It must hold JSON.") from None
        if isinstance(known, dict):
            return {key: value for key, value in known.items() if isinstance(value, dict)} | {
                "": {"": str(place.parent)}
            }
        raise ConfigError("must hold a mapping of datasets", where=place)
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
    learned = translation.compared_as if translation.compares else "text" if learns_texts else None
    source["format"] = learned or formatting
    if renamed := _renamed(COLUMNS[formatting, learned], columns, compares=translation.compares):
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


def _renamed(names: Mapping[str, str], said: Mapping[str, Any], *, compares: bool) -> dict[str, Value]:
    """Our names of columns: theirs, where they differ."""
    found = {ours: str(said.get(theirs) or UNNAMED.get(theirs, ours)) for theirs, ours in names.items()}
    # Where answers are compared the instruction is named, for a column `prompt` would come first.
    return {ours: theirs for ours, theirs in found.items() if ours != theirs or (compares and ours == "instruction")}


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

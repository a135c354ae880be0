"""The datasets of axolotl as sources of rows: paths, splits, formats and columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from loraft.config.yaml_nodes import Value
from loraft.peers.preference_keys import columns_of_answers, rows_of, type_of_answers
from loraft.peers.row_sources import UNREAD, Source, place_of_files, write_evaluation, written_sources
from loraft.peers.translation import Translation

OPEN_ORCA = {"system": "system_prompt", "instruction": "question", "output": "response"}
TYPES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "alpaca": ("alpaca", {}),
    "alpaca_instruct": ("alpaca", {}),
    "alpaca_chat": ("alpaca", {}),
    "alpaca_chat.load_qa": ("alpaca", {"instruction": "question", "output": "answer"}),
    "alpaca_chat.load_camel_ai": ("alpaca", {"instruction": "message_1", "output": "message_2"}),
    "alpaca_w_system": ("alpaca", {}),
    "alpaca_w_system.load_open_orca": ("alpaca", OPEN_ORCA),
    "alpaca_w_system.load_open_orca_chatml": ("alpaca", OPEN_ORCA),
    "gpteacher": ("alpaca", {"output": "response"}),
    "oasst": ("alpaca", {"instruction": "INSTRUCTION", "output": "RESPONSE"}),
    "sharegpt": ("sharegpt", {}),
    "completion": ("text", {}),
    "pretrain": ("text", {}),
}
"""Types whose rows are read as one of our formats, with our column names: theirs."""
NOT_AS_ALPACA = re.compile(r":(?!instruct)|^alpaca_chat|load_chat|load_no_prompt")
"""Types of instructions that are printed otherwise than as Alpaca."""
TEMPLATES = {
    "alpaca": "as type: alpaca prints it, but for its opening words (Below is an instruction …)",
    "chatml": "as the type of the rows prints them",
}
"""Templates by which a type prints its rows, and what is said of that."""
COLUMNS = {
    "field_instruction": "instruction", "field_input": "input", "field_output": "output", "field_system": "system",
    "field_tools": "tools", "field_human": "prompt", "field_model": "completion", "field_prompt": "prompt",
    "field_completion": "completion",
}  # fmt: skip
"""Keys of a dataset that name a column, and what that is called here."""
KNOWN_TURNS = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})
OF_TURNS = ("message_property_mappings", "message_field_role", "message_field_content")
"""Keys that name those of a turn."""
ANSWERING = {"assistant", "gpt", "model"}
SAME = {
    "trust_remote_code": "code from a dataset's repository is never run",
    "roles": "system, user, assistant and tool are known, and human and gpt",
    "train_on_eos": "the end of a trained turn is trained",
    "train_on_eot": "the end of a trained turn is trained",
    "message_field_training": "a turn's own `train` says whether it is trained",
    "message_field_training_detail": "a turn's own `train` says whether it is trained",
    "field_thinking": "what was thought is read from reasoning_content or thinking",
    "template_thinking_key": "what was thought is read from reasoning_content or thinking",
    "conversation": "data.chat_template prints conversations",
    "chat_template": "data.chat_template prints the conversations of all sources",
    "chat_template_jinja": "data.chat_template prints the conversations of all sources",
    "drop_system_message": "a row's own first turn is kept",
    "shards": "write limit: how many rows are read",
    "shards_idx": "write limit: how many rows are read",
    "preprocess_shards": "rows become tokens in processes of their own where that pays",
    "revision": "the rows of the main branch are read",
}
"""Keys of a dataset that need nothing here, and why."""
READ = (
    "path", "ds_type", "data_files", "split", "name", "type", "field", "text_column", "field_messages",
    "roles_to_train", "message_property_mappings", "message_field_role", "message_field_content",
)  # fmt: skip
"""Keys of a dataset that are looked at by themselves."""


@dataclass
class _Dataset:
    """One dataset, whose keys become those of a source or details that are told."""

    place: str
    said: Mapping[str, Value]
    source: Source = field(default_factory=dict)
    columns: dict[str, Value] = field(default_factory=dict)
    details: list[tuple[str, Value, str]] = field(default_factory=list)

    def tell(self, key: str, why: str) -> None:
        """Say of a key why nothing is written."""
        self.details.append((f"{self.place}.{key}", self.said[key], why))


def translate_rows(translation: Translation) -> None:
    """`datasets`, `test_datasets` and `pretraining_dataset`, and the share that is held out."""
    for name, ours in (("datasets", "data.train"), ("test_datasets", "data.eval")):
        if translation.value(name) is not None:
            _translate(translation, name, ours)
    if translation.value("pretraining_dataset") is not None:
        _translate(translation, "pretraining_dataset", "data.train", {"data.streaming": True})
    write_evaluation(translation, "val_set_size", "test_datasets")
    if template := _template_of_types(translation):
        translation.of_itself({"data.chat_template": template}, TEMPLATES[template])


def _translate(translation: Translation, name: str, ours: str, besides: Mapping[str, Value] | None = None) -> None:
    entries = enumerate(_entries(translation, name))
    datasets = [_read(f"{name}[{number}]", each, translation) for number, each in entries]
    if not datasets or any("path" not in each.source for each in datasets):
        translation.refuse(name, "must name its rows by a path", "Write the path of each dataset.")
    translation.write(name, {ours: written_sources([each.source for each in datasets]), **(besides or {})})
    for each in datasets:
        for key, value, why in each.details:
            translation.detail(name, key, value, why)


def _entries(translation: Translation, name: str) -> list[Mapping[str, Value]]:
    """The datasets under a key, each as a mapping."""
    said = translation.value(name)
    entries = said if isinstance(said, list) else [said]
    return [{"path": each} if isinstance(each, str) else each for each in entries if isinstance(each, str | dict)]


def _template_of_types(translation: Translation) -> str | None:
    """The template that prints every dataset, by the types; None where the file says one, or where they differ."""
    if translation.value("chat_template", "chat_template_jinja") is not None:
        return None
    names = ("datasets", "test_datasets", "pretraining_dataset")
    types = [str(each.get("type")) for name in names for each in _entries(translation, name)]
    found = {_template_of(kind, of_answers=translation.compares) for kind in types}
    return found.pop() if len(found) == 1 else None


def _template_of(kind: str, *, of_answers: bool) -> str | None:
    if kind.startswith("chatml.") if of_answers else kind.endswith("_chatml"):
        return "chatml"
    known = None if of_answers or NOT_AS_ALPACA.search(kind) else _known(kind)
    return "alpaca" if known is not None and known[0] == "alpaca" else None


def _known(kind: Value) -> tuple[str, Mapping[str, str]] | None:
    """The format and the columns of a type: `alpaca:chat` and `alpaca.load_x` are read as alpaca is."""
    words = str(kind).partition(":")[0]
    return TYPES.get(words) or TYPES.get(words.partition(".")[0])


def _read(place: str, said: Mapping[str, Value], translation: Translation) -> _Dataset:
    dataset = _Dataset(place, said)
    _place(dataset)
    compared = set[str]()
    if translation.loss is not None:
        dataset.source["format"], compared = translation.compared_as, {*rows_of(translation.loss).fields}
        _answers(dataset, translation.loss)
    elif said.get("type") is None and place.startswith("datasets"):
        why = "a dataset without a type is of rows that are tokens already, which are not read: name their text"
        dataset.details.append((f"{place}.type", None, why))
    else:
        _type(dataset, is_printed_so=_template_of_types(translation) is not None)
    for key, ours in COLUMNS.items():
        if said.get(key) is not None and key not in compared:
            dataset.columns[ours] = said[key]
    named = said.get("field", said.get("text_column"))
    ours = "conversations" if dataset.source.get("format") == "sharegpt" else "text"
    if named not in (None, ours):
        dataset.columns[ours] = named
    if dataset.columns:
        dataset.source["columns"] = dataset.columns
    roles = said.get("roles_to_train")
    if isinstance(roles, list) and not (roles and {str(role) for role in roles} <= ANSWERING):
        dataset.tell("roles_to_train", "the assistant's turns are trained; data.train_on: all trains every token")
    for key, value in said.items():
        if value not in (None, False) and key in SAME:
            dataset.tell(key, SAME[key])
        elif value is not None and key not in {*READ, *COLUMNS, *SAME, *compared}:
            dataset.tell(key, UNREAD)
    return dataset


def _place(dataset: _Dataset) -> None:
    """Where the rows are."""
    path = dataset.said.get("path")
    if not isinstance(path, str) or not path:
        return
    place = place_of_files(path, dataset.said.get("data_files"))
    if place is None:
        dataset.tell("data_files", "each file is a source of its own: write its path")
    dataset.source["path"] = place or path
    for key in ("name", "split"):
        if dataset.said.get(key) is not None:
            dataset.source[key] = dataset.said[key]


def _answers(dataset: _Dataset, loss: str) -> None:
    """The columns of rows whose answers are compared."""
    said = dataset.said
    dataset.columns.update(columns_of_answers(said, loss))
    if isinstance(said.get("type"), dict) and "instruction" in dataset.columns:
        _tell_formats(dataset)
    if type_of_answers(said, loss) is None:
        dataset.tell("type", "there is no such type: rows are read by their columns, text as it stands")
    elif str(said.get("type")).startswith("llama3."):
        dataset.tell("type", "data.chat_template prints it: auto is the tokenizer's own, as Llama 3 has one")
    _turn(dataset)


def _type(dataset: _Dataset, *, is_printed_so: bool) -> None:
    """The format of the rows, and the columns that it names; whether the template is that of the format."""
    kind = dataset.said.get("type")
    if isinstance(kind, dict):
        _tell_formats(dataset)
        names = {COLUMNS[key]: value for key, value in kind.items() if key in COLUMNS and isinstance(value, str)}
        if names.get("instruction"):
            dataset.source["format"] = "alpaca"
        dataset.columns.update({ours: theirs for ours, theirs in names.items() if ours != theirs and theirs})
        return
    if str(kind).startswith("chat_template"):
        _conversations(dataset)
    elif (known := _known(kind)) is not None:
        dataset.source["format"] = known[0]
        dataset.columns.update(known[1])
        if ":" in str(kind) or (known[0] == "alpaca" and not is_printed_so):
            dataset.tell("type", f"is read as {known[0]}; data.chat_template prints it")
    elif kind is not None:
        dataset.tell("type", "there is no such type: data.format: auto recognises rows by their columns")


def _tell_formats(dataset: _Dataset) -> None:
    """Say of a type that is spelt out that its formats are not read."""
    why = "rows are printed by data.chat_template, not by a format"
    dataset.details.append((f"{dataset.place}.type", "…", why))


def _conversations(dataset: _Dataset) -> None:
    """Rows of turns: their column, and the keys of a turn."""
    column = str(dataset.said.get("field_messages") or "messages")
    is_shared = _turn(dataset) == KNOWN_TURNS[1] or column == "conversations"
    ours = "conversations" if is_shared else "messages"
    dataset.source["format"] = "sharegpt" if is_shared else "messages"
    if column != ours:
        dataset.columns[ours] = column


def _turn(dataset: _Dataset) -> Mapping[str, Value]:
    """What the role and the content of a turn are called; other names, which are not read, are told."""
    said = dataset.said
    mapping = said.get("message_property_mappings")
    turn = {"role": "role", "content": "content"} | ({**mapping} if isinstance(mapping, dict) else {})
    for key, ours in (("message_field_role", "role"), ("message_field_content", "content")):
        if isinstance(said.get(key), str):
            turn[ours] = said[key]
    keys = {key: turn[key] for key in ("role", "content")}
    if keys not in KNOWN_TURNS or any(key != name for key, name in turn.items() if key not in keys):
        key = next(each for each in OF_TURNS if each in said)
        why = "a turn has role and content, or from and value, and else tool_calls: rename those of the rows"
        dataset.tell(key, why)
    return keys

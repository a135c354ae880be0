"""Datasets of other tools become sources of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraft.errors import ConfigError
from tests.peers.translating import STARTS, become, imported

OF_TURN = "message_property_mappings"
RL = "rl: dpo\nadapter: lora\n"
SHARED = (
    "{path: a/b, type: chat_template, field_messages: talk, message_property_mappings: {role: from, content: value}}"
)


@pytest.mark.parametrize(
    ("entry", "source"),
    [
        ("{path: a/b, type: alpaca}", {"path": "a/b", "format": "alpaca"}),
        ("{path: a/b, type: 'alpaca:chat'}", {"path": "a/b", "format": "alpaca"}),
        ("{path: a/b, type: chat_template}", {"path": "a/b", "format": "messages"}),
        (
            "{path: a/b, type: chat_template, field_messages: talk}",
            {"path": "a/b", "format": "messages", "columns": {"messages": "talk"}},
        ),
        (SHARED, {"path": "a/b", "format": "sharegpt", "columns": {"conversations": "talk"}}),
        (
            "{path: a/b, type: completion, field: body, name: en, split: 'train[:1%]'}",
            {"path": "a/b", "name": "en", "split": "train[:1%]", "format": "text", "columns": {"text": "body"}},
        ),
        ("{path: a/b, type: gpteacher}", {"path": "a/b", "format": "alpaca", "columns": {"output": "response"}}),
        (
            "{path: a/b, type: {field_instruction: q, field_output: a}}",
            {"path": "a/b", "format": "alpaca", "columns": {"instruction": "q", "output": "a"}},
        ),
        (
            "{path: a/b, type: alpaca_chat.load_qa}",
            {"path": "a/b", "format": "alpaca", "columns": {"instruction": "question", "output": "answer"}},
        ),
        (
            "{path: a/b, type: sharegpt, field: talk}",
            {"path": "a/b", "format": "sharegpt", "columns": {"conversations": "talk"}},
        ),
        ("{path: a/b, data_files: [c.jsonl]}", "hf://datasets/a/b/c.jsonl"),
        ("{path: json, data_files: c.jsonl, ds_type: json, type: completion}", {"path": "c.jsonl", "format": "text"}),
        ("{path: a/b, type: jeopardy}", "a/b"),
    ],
)
def test_a_dataset_of_axolotl(tmp_path: Path, entry: str, source: Any) -> None:
    done = imported(tmp_path, f"base_model: a/b\nsequence_len: 8\ndatasets: [{entry}]\n")
    (row,) = [row for row in done.rows if row.key == "datasets"]
    assert row.becomes == {"data.train": source}


def test_what_a_dataset_says_besides_is_named(tmp_path: Path) -> None:
    entry = "{path: a/b, type: jeopardy, roles_to_train: [user], frobs: 3, shards: 8}"
    done = imported(tmp_path, f"base_model: a/b\nsequence_len: 8\ndatasets: [{entry}]\n")
    details = {row.key: row.why for row in done.rows if row.key.startswith("datasets[0].")}
    assert {key.partition(".")[2] for key in details} == {"type", "roles_to_train", "frobs", "shards"}
    assert all(details.values())


@pytest.mark.parametrize(
    ("rest", "entry", "key"),
    [
        ("", "{path: a/b}", "type"),
        ("", "{path: a/b, type: chat_template, message_property_mappings: {content: text}}", OF_TURN),
        (
            "",
            "{path: a/b, type: chat_template, message_property_mappings: {role: from, content: value, weight: w}}",
            OF_TURN,
        ),
        (RL, "{path: a/b, type: chat_template.default, message_property_mappings: {role: who}}", OF_TURN),
        (RL, "{path: a/b, type: chat_template.default, message_field_content: text}", "message_field_content"),
    ],
)
def test_what_no_row_is_read_from_is_named(tmp_path: Path, rest: str, entry: str, key: str) -> None:
    done = imported(tmp_path, f"base_model: a/b\nsequence_len: 8\n{rest}datasets: [{entry}]\n")
    assert [row.key for row in done.rows if row.key.startswith("datasets[0].")] == [f"datasets[0].{key}"]


def test_alpaca_alone_is_printed_as_alpaca(tmp_path: Path) -> None:
    alpaca = "base_model: a/b\nsequence_len: 8\ndatasets: [{path: a/b, type: alpaca}]\n"
    assert imported(tmp_path, alpaca).config.data.chat_template == "alpaca"
    assert imported(tmp_path, alpaca + "chat_template: chatml\n").config.data.chat_template == "chatml"


@pytest.mark.parametrize(
    ("kinds", "template", "told"),
    [
        (["alpaca", "gpteacher"], "alpaca", 0),
        (["alpaca_w_system.load_open_orca"], "alpaca", 0),
        (["alpaca", "chat_template"], "auto", 1),
        (["'alpaca:chat'"], "auto", 1),
        (["alpaca_chat.load_qa"], "auto", 1),
        (["alpaca_w_system.load_open_orca_chatml"], "chatml", 0),
    ],
)
def test_one_template_prints_all_datasets(tmp_path: Path, kinds: list[str], template: str, told: int) -> None:
    """Axolotl prints a dataset of the type alpaca as Alpaca, whatever prints the others."""
    entries = ", ".join(f"{{path: a/b, type: {kind}}}" for kind in kinds)
    done = imported(tmp_path, f"base_model: a/b\nsequence_len: 8\ndatasets: [{entries}]\n")
    assert done.config.data.chat_template == template
    assert len([row for row in done.rows if row.key.endswith(".type")]) == told


def test_texts_of_llama_factory_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(
        '{"rows": {"file_name": "a.jsonl", "columns": {"prompt": "text"}}, "more": {"file_name": "b.jsonl"}}'
    )
    text = STARTS["llama-factory"].replace("sft", "pt").replace("dataset: rows", "dataset: rows, more")
    first, second = imported(tmp_path, text).config.data.train
    assert (first.format, first.columns) == ("text", {})
    assert (second.format, second.columns) == ("text", {"text": "instruction"})
    assert imported(tmp_path, text).config.data.packing == "fill"  # which is LLaMA-Factory's default for texts
    assert imported(tmp_path, text + "packing: false\n").config.data.packing == "auto"


def test_rows_before_training_are_streamed(tmp_path: Path) -> None:
    text = (
        "base_model: a/b\nsequence_len: 8\npretraining_dataset: [{path: a/b, name: en, type: pretrain}]\nmax_steps: 9\n"
    )
    config = imported(tmp_path, text).config
    assert (config.data.streaming, config.data.eval, config.data.train[0].format) == (True, None, "text")


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        ("axolotl", "streaming: true\nval_set_size: 0.1\n"),
        ("llama-factory", "streaming: true\nval_size: 100\n"),
        ("trl", "dataset_streaming: true\ntest_split_size: 0.1\n"),
    ],
)
def test_no_share_of_a_stream_is_held_out(tmp_path: Path, peer: str, text: str) -> None:
    config = imported(tmp_path, f"{STARTS[peer]}{text}max_steps: 9\n").config
    assert (config.data.streaming, config.data.eval) == (True, None)


def test_datasets_of_llama_factory_are_explained_by_the_file_beside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    known = {
        "rows": {"file_name": "rows.json", "columns": {"prompt": "q", "response": "output"}},
        "talk": {"hf_hub_url": "x/talk", "formatting": "sharegpt", "subset": "en", "num_samples": 5},
        "pairs": {"file_name": "pairs.json", "ranking": True},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(known))
    text = STARTS["llama-factory"].replace("dataset: rows", "dataset: rows, talk")
    (row,) = [row for row in imported(tmp_path, text).rows if row.key == "dataset"]
    folder = str(tmp_path / "data")
    assert row.becomes["data.train"] == [
        {"path": f"{folder}/rows.json", "format": "alpaca", "columns": {"instruction": "q"}},
        {"path": "x/talk", "name": "en", "limit": 5, "format": "sharegpt"},
    ]
    with pytest.raises(ConfigError, match="pairs"):
        imported(tmp_path, STARTS["llama-factory"].replace("dataset: rows", "dataset: pairs"))
    (tmp_path / "data" / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        imported(tmp_path, text)


def test_a_dataset_that_nothing_explains_is_guessed_and_said(tmp_path: Path) -> None:
    (row,) = [row for row in imported(tmp_path, STARTS["llama-factory"]).rows if row.key == "dataset"]
    assert row.becomes == {"data.train": "data/rows.json"}
    assert "dataset_info.json was not found" in row.why


def test_a_mixture_of_trl(tmp_path: Path) -> None:
    text = "model_name_or_path: a/b\nuse_peft: true\ndatasets: [{path: c/d, split: x, columns: [m]}, {path: e/f}]\n"
    assert become_of(tmp_path, text) == [{"path": "c/d", "split": "x"}, "e/f"]
    assert become(tmp_path, "trl", "dataset_train_split: validation")["data.train"] == {
        "path": "c/d",
        "split": "validation",
    }


def test_places_of_the_files_of_a_mixture_of_trl(tmp_path: Path) -> None:
    entries = "{path: json, data_files: x.jsonl}, {path: c/d, data_files: [y.jsonl]}, {path: c/d, data_files: [y, z]}"
    done = imported(
        tmp_path, f"model_name_or_path: a/b\nuse_peft: true\ndatasets: [{entries}, {{path: e/f, fraction: 1}}]\n"
    )
    assert [source.path for source in done.config.data.train] == ["x.jsonl", "hf://datasets/c/d/y.jsonl", "c/d", "e/f"]
    told = [row.key for row in done.rows if row.key.startswith("datasets[")]
    assert told == ["datasets[2].data_files", "datasets[3].fraction"]


def test_rows_of_llama_factory_that_are_elsewhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    known = {"rows": {"ms_hub_url": "a/b"}, "more": {"hf_hub_url": "a/b", "ms_hub_url": "c/d", "folder": "python"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(known))
    text = STARTS["llama-factory"].replace("dataset: rows", "dataset: rows, more")
    rows = imported(tmp_path, text).rows
    assert [row.key for row in rows if "." in row.key] == ["rows.ms_hub_url", "more.folder"]
    text = STARTS["llama-factory"] + "dataset_dir: 'REMOTE:a/b'\n"
    assert imported(tmp_path, text).config.data.train[0].path == "hf://datasets/a/b/rows.json"


def become_of(folder: Path, text: str) -> Any:
    done = imported(folder, text)
    assert [row.key for row in done.rows if row.key.startswith("datasets[")] == ["datasets[0].columns"]
    return next(row.becomes["data.train"] for row in done.rows if row.key == "datasets")

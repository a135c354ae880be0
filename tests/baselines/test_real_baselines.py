"""Real models beside networks from scratch: the topics of questions, and tickets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraft.rows.synthetic_tickets import tickets
from tests.cli.running import loraft
from tests.inference.test_topics import ENCODER, accuracy_of_predictions, accuracy_of_tf_idf, topics
from tests.training.building import write_rows


def told(place: Path, *words: str) -> dict[str, Any]:
    trained = loraft("train", "run.yaml", cwd=place)
    assert trained.returncode == 0, trained.stderr
    done = loraft("baseline", "run.yaml", *words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    print(*document["findings"], sep="\n")
    return document


def orders(found: dict[str, Any]) -> dict[str, float]:
    """How far each gradient falls over 200 tokens, in orders of magnitude."""
    networks = found["gradient"]["networks"]
    assert {len(each["relative"]) for each in networks} == {200}
    return {each["name"]: each["orders"] for each in networks}


@pytest.mark.slow
def test_an_lstm_tells_topics_about_as_well_as_tf_idf_and_an_encoder_better(tmp_path: Path) -> None:
    train, held_out = topics(0)
    names = {row["label"] for row in train}
    held_out = [row for row in held_out if row["label"] in names]
    write_rows(tmp_path / "train.jsonl", train)
    write_rows(tmp_path / "held-out.jsonl", held_out)
    config = {"task": "seq_cls", **ENCODER, "data": {"train": "train.jsonl", "eval": "held-out.jsonl"}}
    config["training"] = {**ENCODER["training"], "output_dir": "run"}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    found = told(tmp_path, "--cell", "both")
    tuned, lstm, _ = (each["figures"]["accuracy"] for each in found["networks"])
    of_words = accuracy_of_tf_idf(train, held_out)
    assert lstm > of_words - 0.1
    assert tuned >= of_words
    assert accuracy_of_predictions(tmp_path, "held-out.jsonl") == pytest.approx(tuned)
    assert tuned > lstm
    assert found["differences"]["lstm"]["accuracy"]["low"] > 0
    assert all(each["plateau"] for each in found["training"])
    fall = orders(found)
    assert fall["rnn"] > 2 * fall["lstm"] > 2 > 2 * abs(fall["fine-tuned"])


@pytest.mark.slow
def test_an_lstm_writes_tickets_worse_than_a_decoder_and_remembers_less(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [dict(row) for row in tickets("train")[:64]])
    write_rows(tmp_path / "held-out.jsonl", [dict(row) for row in tickets("eval")[:8]])
    config = {
        "model": {"name_or_path": "builtin:smollm2-135m-instruct", "dtype": "bfloat16"},
        "data": {"train": "train.jsonl", "eval": "held-out.jsonl", "max_length": 256},
        "training": {
            "output_dir": "run", "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 2e-3,
            "eval_steps": 1000,
        },
        "generation": {"max_new_tokens": 16},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    found = told(tmp_path)
    tuned, lstm = found["networks"]
    assert found["differences"]["lstm"]["loss"]["high"] < 0
    assert lstm["figures"]["loss"] < 2
    # Keys and values of three heads of 64 in thirty layers, in 16 bits; a hidden and a cell state of 256 float32.
    assert tuned["writing"]["bytes_a_token"] == 2 * 3 * 64 * 30 * 2
    assert (lstm["writing"]["bytes_a_token"], lstm["writing"]["state_bytes"]) == (0, 2 * 256 * 4)
    assert lstm["writing"]["seconds"] < tuned["writing"]["seconds"]
    fall = orders(found)
    assert fall["lstm"] > abs(fall["fine-tuned"]) + 0.5

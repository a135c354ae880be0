"""Real models as classifiers: the topic of a question, against TF-IDF with logistic regression on the same rows."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import loraft

ENCODER = {
    "model": {"name_or_path": "builtin:all-minilm-l6-v2", "dtype": "float32"},
    "training": {"num_train_epochs": 8, "per_device_train_batch_size": 16, "learning_rate": 2e-3},
}
DECODER = {
    "model": {"name_or_path": "builtin:smollm2-135m-instruct", "dtype": "bfloat16"},
    "training": {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-3},
}


def topics(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The questions of chatterbot-corpus with their topics, each once: four fifths to train on, one held out."""
    from ruamel.yaml import YAML

    rows: dict[str, dict[str, str]] = {}
    for topic in sorted(files("chatterbot_corpus").joinpath("data/english").iterdir(), key=lambda file: file.name):
        if topic.name.endswith(".yml"):
            for question, *_ in YAML(typ="safe").load(topic.read_text("utf-8"))["conversations"]:
                text = str(question)
                rows.setdefault(text.strip().lower(), {"text": text, "label": topic.name.removesuffix(".yml")})
    shuffled = list(rows.values())
    random.Random(seed).shuffle(shuffled)
    fifth = len(shuffled) // 5
    return shuffled[fifth:], shuffled[:fifth]


def accuracy_of_tf_idf(train: list[dict[str, str]], held_out: list[dict[str, str]]) -> float:
    """The better of word and character n-grams, with weak regularisation: better here than the defaults."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    scores = []
    for read in (TfidfVectorizer(ngram_range=(1, 2)), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))):
        model = make_pipeline(read, LogisticRegression(C=10, max_iter=2000))
        model.fit([row["text"] for row in train], [row["label"] for row in train])
        given = model.predict([row["text"] for row in held_out])
        scores.append(sum(a == row["label"] for a, row in zip(given, held_out, strict=True)) / len(held_out))
    return max(scores)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [ENCODER, DECODER], ids=["all-minilm-l6-v2", "smollm2"])
def test_a_real_classifier_is_at_least_as_good_as_tf_idf(tmp_path: Path, settings: dict[str, Any]) -> None:
    train, held_out = topics(0)
    names = sorted({row["label"] for row in train})
    for name, rows in (("train", train), ("test", [row for row in held_out if row["label"] in names])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"task": "seq_cls", "method": "lora", **settings, "data": {"train": "train.jsonl", "eval": None}}
    config["training"] = {**settings["training"], "output_dir": "run"}
    (tmp_path / "topics.yaml").write_text(json.dumps(config))
    trained = loraft("train", "topics.yaml", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    asked = loraft("predict", "run", "--input", "test.jsonl", "--output", "o.jsonl", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    answers = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    accuracy = sum(row["prediction"] == row["label"] for row in answers) / len(answers)
    print(f"{settings['model']['name_or_path']}: {accuracy:.3f}, TF-IDF {accuracy_of_tf_idf(train, held_out):.3f}")
    assert accuracy >= accuracy_of_tf_idf(train, held_out)

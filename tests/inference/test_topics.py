"""Real models as classifiers: the topic of a question, against TF-IDF with logistic regression on the same rows."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path

import pytest

from tests.cli.running import loraft

ENCODER = {
    "model": {"name_or_path": "builtin:all-minilm-l6-v2", "dtype": "float32"},
    "training": {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 2e-3},
}
DECODER = {
    "model": {"name_or_path": "builtin:smollm2-135m-instruct", "dtype": "bfloat16"},
    "training": {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 3e-3},
    "lora": {"layers": "last:10"},
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


def accuracy_of_predictions(place: Path, rows: str) -> float:
    """What `loraft predict` gets right of a file of rows with the model of `run`."""
    asked = loraft("predict", "run", "--input", rows, "--output", "o.jsonl", cwd=place)
    assert asked.returncode == 0, asked.stderr
    answers = [json.loads(line) for line in (place / "o.jsonl").read_text().splitlines()]
    return sum(row["prediction"] == row["label"] for row in answers) / len(answers)


@pytest.mark.slow
def test_a_real_decoder_is_at_least_as_good_as_tf_idf(tmp_path: Path) -> None:
    """The encoder is held to it where networks from scratch stand beside it: tests/baselines/test_real_baselines.py."""
    train, held_out = topics(0)
    names = sorted({row["label"] for row in train})
    for name, rows in (("train", train), ("test", [row for row in held_out if row["label"] in names])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"task": "seq_cls", "method": "lora", **DECODER, "data": {"train": "train.jsonl", "eval": None}}
    config["training"] = {**DECODER["training"], "output_dir": "run"}
    (tmp_path / "topics.yaml").write_text(json.dumps(config))
    trained = loraft("train", "topics.yaml", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert accuracy_of_predictions(tmp_path, "test.jsonl") >= accuracy_of_tf_idf(train, held_out)

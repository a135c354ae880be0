"""`api.evaluate` on classifiers: the figures are those of what they say of each row, and the loss is of all rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score
from transformers import AutoModelForSequenceClassification

from loraft import api
from loraft.errors import AdapterError, DataError, NonFiniteError, OutOfMemoryError
from loraft.evaluation.evaluator import Evaluation
from loraft.events import Event, Note
from loraft.inference.requests import ModelRequest
from tests.tiny import tiny_tokenizer
from tests.training.building import write_rows
from tests.training.classifiers import classifier_config, labelled_rows

LABELS = ("fine", "late", "other")


@pytest.fixture(scope="module", params=["bert", "llama"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, a merged model, and rows."""
    folder = tmp_path_factory.mktemp(request.param)
    weighted = {"training__class_weights": {"late": 1, "fine": 2, "other": 5}}
    api.train(classifier_config(folder, request.param, data__labels=list(LABELS), training__max_steps=4, **weighted))
    write_rows(folder / "rows.jsonl", labelled_rows(23))
    return folder


def evaluated(place: Path, target: str = "run", **arguments: Any) -> Evaluation:
    choice = ModelRequest(str(place / target), dtype="float32")
    return api.evaluate(choice, **{"data": place / "rows.jsonl"} | arguments)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_c38_the_loss_is_of_all_rows_whatever_the_batch(place: Path, batch_size: int) -> None:
    """C38, against transformers' own forward of the merged model, row by row. 1e-5: merging rounds in float32."""
    if not (place / "merged").exists():
        api.merge(str(place / "run"), place / "merged", verified=False)
    model = AutoModelForSequenceClassification.from_pretrained(place / "merged").eval()
    tokenizer, losses = tiny_tokenizer(), []
    for row in labelled_rows(23):
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=torch.tensor([LABELS.index(row["label"])])).loss.item())
    for target in ("run", "merged"):
        found = evaluated(place, target, batch_size=batch_size)
        assert found.measured.loss == pytest.approx(math.fsum(losses) / 23, rel=1e-5)
        assert (found.task, found.rows, found.measured.perplexity) == ("seq_cls", 23, None)


@pytest.mark.slow
def test_the_figures_are_those_of_the_rows_in_the_file(place: Path, tmp_path: Path) -> None:
    found = evaluated(place, output=tmp_path / "o.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["row", "input", "reference", "prediction", "probabilities", "loss"]
    assert [(line["input"], line["reference"]) for line in lines] == [
        (row["text"], row["label"]) for row in labelled_rows(23)
    ]
    told = api.predict(ModelRequest(str(place / "run"), dtype="float32"), texts=[(lines[3]["input"], None)])
    assert lines[3]["probabilities"] == pytest.approx(told[0], abs=1e-6)
    for line in lines:
        assert line["prediction"] == max(line["probabilities"], key=line["probabilities"].__getitem__)
        assert line["loss"] == pytest.approx(-math.log(line["probabilities"][line["reference"]]), abs=1e-5)
    right, given = [line["reference"] for line in lines], [line["prediction"] for line in lines]
    assert found.confusion_matrix is not None
    assert found.confusion_matrix.labels == LABELS
    assert found.confusion_matrix.matrix == confusion_matrix(right, given, labels=list(LABELS)).tolist()
    assert found.measured.metrics["macro_f1"] == pytest.approx(f1_score(right, given, average="macro", zero_division=0))
    assert found.measured.loss == pytest.approx(math.fsum(line["loss"] for line in lines) / 23)


@pytest.mark.slow_after(1)
def test_classes_are_those_of_the_adapter_whatever_the_rows_have(place: Path, tmp_path: Path) -> None:
    """Rows of one class, one by its number; and a pair, of which both texts are shown."""
    rows = [{"text": "late", "text_pair": "the order", "label": "other"}, {"text": "so", "label": 2}]
    write_rows(tmp_path / "few.jsonl", rows)
    found = evaluated(place, data=tmp_path / "few.jsonl", output=tmp_path / "o.jsonl")
    assert found.confusion_matrix is not None
    assert [sum(row) for row in found.confusion_matrix.matrix] == [0, 0, 2]
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(line["input"], line["reference"]) for line in lines] == [(["late", "the order"], "other"), ("so", "other")]


def test_weights_of_training_are_not_counted_and_that_is_said(place: Path) -> None:
    told: list[Event] = []
    evaluated(place, observer=told.append)
    assert any(isinstance(each, Note) and "here each row counts the same" in each.text for each in told)


def test_unknown_classes_are_named_before_a_weight_is_read(place: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "bad.jsonl", [{"text": "a", "label": "late"}, {"text": "b", "label": "Otter"}])
    kept = (place / "model/model.safetensors").rename(place / "kept")
    try:
        with pytest.raises(DataError, match=r"bad.jsonl:2 label: 'Otter' is none of the 3 classes") as error:
            evaluated(place, data=tmp_path / "bad.jsonl")
    finally:
        kept.rename(place / "model/model.safetensors")
    assert error.value.problems[0].remedy == "Did you mean other? They are fine, late, other."


def test_a_head_that_was_trained_new_has_no_base_to_compare_with(place: Path) -> None:
    with pytest.raises(AdapterError, match="the head that tells the classes was trained with the adapter"):
        evaluated(place, baseline=True)


@pytest.mark.slow
def test_an_adapter_on_a_classifier_is_compared_with_it(tmp_path: Path) -> None:
    """The base is a classifier of the same classes, whose own head answers for it."""
    api.train(classifier_config(tmp_path, method="full", training__max_steps=2))
    arguments = {"model__name_or_path": str(tmp_path / "run/model"), "training__output_dir": str(tmp_path / "second")}
    api.train(classifier_config(tmp_path, training__max_steps=6, **arguments))
    write_rows(tmp_path / "rows.jsonl", labelled_rows(23))
    both = evaluated(tmp_path, "second", baseline=True)
    alone = evaluated(tmp_path, "run")
    assert both.baseline is not None
    assert both.baseline.loss == pytest.approx(alone.measured.loss, rel=1e-6)
    assert both.baseline.loss != both.measured.loss
    assert both.differences.keys() == {"loss", "accuracy", "macro_f1", "mcc"}


def test_memory_that_runs_out_is_told_without_words_about_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("loraft.inference.classifier.class_logits", full)
    with pytest.raises(OutOfMemoryError, match=r"Give a smaller `batch_size`\.$"):
        evaluated(place)
    with pytest.raises(OutOfMemoryError, match="shorter text"):
        api.predict(str(place / "run"), texts=[("late", None)])


def test_scores_that_are_no_numbers_are_no_probabilities(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 overflows in some models: NaN stood in the file for every class, and the first one was told."""
    monkeypatch.setattr("loraft.inference.classifier.class_logits", lambda *_: torch.full((1, 3), math.nan))
    with pytest.raises(NonFiniteError, match="`dtype`"):
        api.predict(str(place / "run"), texts=[("late", None)])

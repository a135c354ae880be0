"""`loraft evaluate` on encoder-decoders and classifiers, from their training to tables, JSON and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import loraft, refused
from tests.tiny import save_tiny
from tests.training.building import pairs, rows, write_rows
from tests.training.classifiers import labelled_rows
from tests.words import Wording

CONFIG = """\
task: {task}
model: {{name_or_path: {model}, dtype: float32}}
data: {{{data}, train: {name}.jsonl, eval: 0.4, max_length: 128}}
lora: {{r: 4}}
training: {{max_steps: 4, output_dir: {name}, learning_rate: 1e-2}}
generation: {{max_new_tokens: 8, temperature: 0}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 and a BERT, a run of each, and rows."""
    folder = tmp_path_factory.mktemp("made")
    named = [{"translation": {"en": each["source"], "xx": each["target"]}} for each in pairs(14)]
    languages = "source_lang: en, target_lang: xx, source_prefix: 'turn: '"
    labels = "labels: [fine, late, other]"
    for model, name, task, given, data in (
        ("t5", "turns", "seq2seq_lm", named, languages),
        ("bert", "topics", "seq_cls", labelled_rows(14), labels),
    ):
        save_tiny(folder / model, model)
        write_rows(folder / f"{name}.jsonl", given)
        (folder / f"{name}.yaml").write_text(CONFIG.format(task=task, model=model, name=name, data=data))
        assert loraft("train", f"{name}.yaml", cwd=folder).returncode == 0
        shutil.copytree(folder / name / "adapter", folder / f"{name}-alone")
    write_rows(folder / "chats.jsonl", rows(3))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, to be written into."""
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


def told(place: Path, *words: str) -> dict[str, Any]:
    done = loraft("evaluate", *words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turns", "topics"])
def test_a_run_is_measured_on_its_held_out_rows_to_the_loss_that_training_logged(place: Path, name: str) -> None:
    logged = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in logged if "eval_loss" in line][-1]
    found = told(place, f"{name}.yaml")
    assert found["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert found["data"] == "the run's held-out rows"
    if name == "topics":
        assert found["metrics"]["accuracy"] == pytest.approx(last["eval_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turns", "topics"])
def test_an_adapter_alone_and_what_was_merged_measure_as_the_run(place: Path, name: str) -> None:
    """What a file of rows is read as is recorded beside the weights. 1e-5: merging rounds in float32."""
    words = ("--data", f"{name}.jsonl", "--metrics", "loss", "--dtype", "float32")
    of_run, alone = told(place, name, *words), told(place, f"{name}-alone", *words)
    assert of_run["loss"] == alone["loss"]
    done = loraft("merge", name, "merged", "--dtype", "float32", cwd=place)
    assert done.returncode == 0, done.stderr
    assert told(place, "merged", *words)["loss"] == pytest.approx(alone["loss"], rel=1e-5)


@pytest.mark.slow
def test_translations_are_generated_measured_and_written(place: Path) -> None:
    words = ("evaluate", "turns", "--baseline", "--max-new-tokens", "6", "--limit", "5", "--output", "o.jsonl")
    done = loraft(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "perplexity", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact match"):
        assert f"\n  {name}" in done.stdout
    assert "95 % interval" in done.stdout
    lines = [json.loads(line) for line in (place / "o.jsonl").read_text().splitlines()]
    asked = {(each["source"], each["target"]) for each in pairs(14)}
    assert {(line["input"], line["reference"]) for line in lines} <= asked
    assert all(isinstance(line["prediction"], str) and line["tokens"] for line in lines)
    assert lines[0]["baseline"].keys() == {"prediction", "finish_reason", "loss"}


@pytest.mark.slow
def test_classes_are_told_measured_and_written(place: Path) -> None:
    done = loraft("evaluate", "topics", "--data", "topics.jsonl", "--output", "o.jsonl", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "perplexity" not in done.stdout
    assert "is ╲ told   fine   late   other" in done.stdout
    found = told(place, "topics", "--data", "topics.jsonl", "--batch-size", "3")
    assert found["metrics"].keys() == {"accuracy", "macro_f1", "mcc"}
    assert (found["rows"], found["perplexity"], found["cut"]) == (14, None, 0)
    matrix = found["confusion_matrix"]
    assert matrix["labels"] == ["fine", "late", "other"]
    assert sum(map(sum, matrix["matrix"])) == 14
    lines = [json.loads(line) for line in (place / "o.jsonl").read_text().splitlines()]
    right = sum(line["prediction"] == line["reference"] for line in lines)
    assert found["metrics"]["accuracy"] == pytest.approx(right / 14)
    assert [line["input"] for line in lines] == [row["text"] for row in labelled_rows(14)]


def test_a_class_that_no_row_has_is_not_called_one_of_training(place: Path) -> None:
    write_rows(place / "few.jsonl", [{"text": "late", "label": "late"}])
    done = loraft("evaluate", "topics", "--data", "few.jsonl", "--max-new-tokens", "4", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "note: no row is of the class fine, other" in done.stderr
    assert "a classifier generates nothing: --max-new-tokens is not used" in done.stderr


def test_a_writer_of_rows_with_a_label_says_which_task_takes_it(place: Path) -> None:
    save_tiny(place / "llama")
    done = loraft("evaluate", "llama", "--data", "topics.jsonl", "--metrics", "loss", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "as rows of text: label; task seq_cls reads a text with its label" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_more_classes_than_a_screen_holds_are_told_by_their_mistakes(place: Path) -> None:
    named = [f"topic-{number}" for number in range(12)]
    write_rows(place / "many.jsonl", [{"text": f"so {name}", "label": name} for name in named])
    overrides = ("data.train=many.jsonl", "data.eval=null", f"data.labels=[{', '.join(named)}]")
    assert loraft("train", "topics.yaml", *overrides, "training.output_dir=many", cwd=place).returncode == 0
    done = loraft("evaluate", "many", "--data", "many.jsonl", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "most frequent mistakes" in done.stdout
    assert "is ╲ told" not in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["turns", "--data", "topics.jsonl"],
        ["turns", "--data", "chats.jsonl"],
        ["topics", "--data", "chats.jsonl"],
        ["topics-alone", "--data", "turns.jsonl"],
        ["topics", "--baseline"],
        ["topics", "--metrics", "bleu"],
        ["topics", "--metrics", "perplexity"],
        ["turns", "--metrics", "mcc"],
        ["topics", "--source-lang", "en"],
        ["turns", "--data", "turns.jsonl", "--target-lang", "fr"],
        ["t5", "--data", "turns.jsonl"],
        ["bert", "--data", "topics.jsonl"],
        ["topics", "--data", "bad.jsonl"],
        ["topics", "--data", "csv.csv"],
    ],
    ids=" ".join,
)
def test_what_is_refused_before_a_model_is_loaded(place: Path, words: list[str], wording: Wording) -> None:
    """The weights of both bases are gone: nobody got as far as to miss them."""
    write_rows(place / "bad.jsonl", [{"text": "a", "label": "late"}, {"text": "b", "label": "lat"}])
    (place / "csv.csv").write_text("text,label\n ,late\n")
    for model in ("t5", "bert"):
        (place / model / "model.safetensors").unlink()
    found = refused(loraft("evaluate", *words, "--output", "o.jsonl", cwd=place))
    wording(found)
    assert not (place / "o.jsonl").exists()

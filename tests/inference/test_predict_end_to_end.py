"""A classifier from its rows to its answers, through the command line alone: trained, asked, merged, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from loraft.adapters.resolve_target import resolve_target
from tests.cli.running import Done, loraft, refused
from tests.tiny import mostly_slow, save_tiny
from tests.training.building import write_rows
from tests.training.classifiers import labelled_rows

CONFIG = """\
task: seq_cls
method: {method}
model: {{name_or_path: base, dtype: float32}}
data: {{train: train.jsonl, eval: eval.jsonl, max_length: 64}}
training: {{output_dir: run, num_train_epochs: 2, learning_rate: 1e-2, logging_steps: 1}}
"""


def setting(folder: Path, model_type: str = "bert", method: str = "lora") -> Path:
    save_tiny(folder / "base", model_type)
    write_rows(folder / "train.jsonl", labelled_rows(24))
    write_rows(folder / "eval.jsonl", labelled_rows(7))
    (folder / "c.yaml").write_text(CONFIG.format(method=method))
    return folder


def told(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "method"),
    mostly_slow(
        [("bert", "lora"), ("roberta", "qlora"), ("distilbert", "full"), ("llama", "lora"), ("gpt2", "qlora")],
        ("bert", "lora"),
    ),
)
def test_a_classifier_is_trained_asked_merged_and_asked_again(tmp_path: Path, model_type: str, method: str) -> None:
    """C22 and C27 for classifiers: what is merged tells the same classes, with its head in it."""
    setting(tmp_path, model_type, method)
    checked = told(loraft("check", "c.yaml", "--json", cwd=tmp_path))
    assert checked["memory"]["peak_bytes"] > 0
    trained = loraft("train", "c.yaml", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Try it:  loraft predict run --text TEXT" in trained.stdout
    assert "accuracy" in trained.stderr
    assert "rows read" in trained.stdout
    assert "trained tokens" not in trained.stdout
    assert "perplexity" not in trained.stdout
    if method != "full":
        assert {"classifier", "score"}.intersection(checked["adapter"]["trained_whole"])
    measured = [line for line in lines(tmp_path / "run/metrics.jsonl") if "eval_loss" in line]
    assert 0 <= measured[-1]["eval_accuracy"] <= 1
    assert "eval_perplexity" not in measured[-1]

    done = told(loraft("predict", "run", "--input", "eval.jsonl", "--output", "o.jsonl", "--json", cwd=tmp_path))
    rows, asked = lines(tmp_path / "o.jsonl"), lines(tmp_path / "eval.jsonl")
    assert done["rows"] == len(asked)
    for row, given in zip(rows, asked, strict=True):
        assert {key: row[key] for key in given} == given
        shares = row["probabilities"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert list(shares) == ["fine", "late", "other"]
        assert row["prediction"] == max(shares, key=shares.__getitem__)
    right = sum(row["prediction"] == row["label"] for row in rows) / len(rows)
    if method != "full":  # trained in float32; full computes in what the device likes best
        assert right == pytest.approx(measured[-1]["eval_accuracy"])
    one = told(loraft("predict", "run", "--text", asked[0]["text"], "--json", cwd=tmp_path))
    assert one["probabilities"] == pytest.approx(rows[0]["probabilities"], abs=1e-2)
    if method == "full":
        return

    report = told(loraft("merge", "run", "merged", "--json", cwd=tmp_path))
    assert report["compared"] == "class logits"
    assert report["labels"] == ["fine", "late", "other"]
    assert report["max_abs_logit_difference"] < 1e-3
    loraft("predict", "merged", "--input", "eval.jsonl", "--output", "m.jsonl", "--dtype", "float32", cwd=tmp_path)
    for row, again in zip(rows, lines(tmp_path / "m.jsonl"), strict=True):
        assert again["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4)
    theirs(tmp_path / "merged", asked, lines(tmp_path / "m.jsonl"))
    layers = loraft("inspect-layers", "run", "--json", cwd=tmp_path)
    assert layers.returncode == 0, layers.stderr


def theirs(folder: Path, asked: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """C50: transformers' own forward over a padded batch of the merged model."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    read = tokenizer([row["text"] for row in asked], padding=True, padding_side="right", return_tensors="pt")
    read.pop("token_type_ids", None)
    with torch.no_grad():
        shares = model.eval()(**read).logits.softmax(-1)
    for row, found in zip(ours, shares, strict=True):
        expected = {model.config.id2label[number]: share for number, share in enumerate(found.tolist())}
        assert row["probabilities"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_a_file_that_was_begun_is_gone_on_with(tmp_path: Path) -> None:
    setting(tmp_path)
    assert loraft("train", "c.yaml", "training.max_steps=1", cwd=tmp_path).returncode == 0
    words = ("predict", "run", "--input", "train.jsonl", "--output", "o.jsonl", "--batch-size", "2")
    assert loraft(*words, cwd=tmp_path).returncode == 0
    whole = (tmp_path / "o.jsonl").read_bytes()
    (tmp_path / "o.jsonl").write_bytes(whole[: len(whole) * 3 // 4])
    assert told(loraft(*words, "--json", cwd=tmp_path))["held"] > 10
    assert (tmp_path / "o.jsonl").read_bytes() == whole
    another = loraft(*words, "--dtype", "bfloat16", cwd=tmp_path)
    assert another.returncode == 2
    assert "another model, or with other settings" in another.stderr
    assert (tmp_path / "o.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_what_training_cut_is_cut_where_it_is_asked_too(tmp_path: Path) -> None:
    """Else classes are told by ends of texts that nothing was learned of, and not as `evaluate` measured it."""
    setting(tmp_path)
    words = ("train", "c.yaml", "data.max_length=12", "data.on_overlength=truncate", "data.special_tokens_in_text=keep")
    assert loraft(*words, cwd=tmp_path).returncode == 0
    assert loraft("merge", "run", cwd=tmp_path).returncode == 0
    short = "the order is late and nobody answers me now and I have been"
    for target in ("run", "run/merged"):
        both = [
            loraft("predict", target, "--text", text, "--json", cwd=tmp_path) for text in (short, short + " well" * 9)
        ]
        assert told(both[0])["probabilities"] == told(both[1])["probabilities"]
        assert "longer than the 12 tokens that training cut rows to, and was cut to them" in both[1].stderr
    recorded = [resolve_target(str(tmp_path / target)).metadata for target in ("run", "run/merged")]
    assert {(each.special_tokens_in_text, each.cut_to) for each in recorded} == {("keep", 12)}
    assert loraft("train", "c.yaml", "training.output_dir=whole", cwd=tmp_path).returncode == 0
    assert "cut" not in loraft("predict", "whole", "--text", short + " well" * 9, cwd=tmp_path).stderr


@pytest.mark.slow
def test_a_text_alone_is_told_where_pairs_were_learned_and_a_pair_where_texts_were(tmp_path: Path) -> None:
    setting(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", labelled_rows(12, pairs=True))
    for name, data in {"one": "train", "two": "pairs"}.items():
        words = (f"data.train={data}.jsonl", "data.eval=null", "training.max_steps=1", f"training.output_dir={name}")
        trained = loraft("train", "c.yaml", *words, cwd=tmp_path)
        pair = " --text-pair TEXT" if name == "two" else ""
        assert trained.stdout.endswith(f"Try it:  loraft predict {name} --text TEXT{pair}\n"), trained.stderr
    assert loraft("merge", "two", cwd=tmp_path).returncode == 0
    alone, both = ("--text", "late"), ("--text", "late", "--text-pair", "order")
    for target, good, bad, what in (
        ("one", alone, both, "there is a text_pair, and training rows have none"),
        ("two", both, alone, "there is no text_pair, and training rows have one"),
        ("two/merged", both, alone, "there is no text_pair, and training rows have one"),
    ):
        assert what not in loraft("predict", target, *good, cwd=tmp_path).stderr
        assert what in loraft("predict", target, *bad, cwd=tmp_path).stderr
    words = ("--input", "train.jsonl", "--output", "o.jsonl")
    assert "there is no text_pair" in loraft("predict", "two", *words, cwd=tmp_path).stderr


@pytest.mark.slow
def test_nothing_is_asked_for_and_left_out_without_a_word(tmp_path: Path) -> None:
    """Of two --text the last would win; a column that no row has is one mistake, and a finished file no empty table."""
    setting(tmp_path)
    assert loraft("train", "c.yaml", "training.max_steps=1", cwd=tmp_path).returncode == 0
    refused = loraft("predict", "run", "--text", "a", "--text", "b", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--text is one text" in refused.stderr
    file = ("predict", "run", "--input", "eval.jsonl", "--output", "o.jsonl")
    refused = loraft(*file, "--text-column", "message", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("error:") == 1
    assert "eval.jsonl --input: there is no column 'message'; the columns are" in " ".join(refused.stderr.split())
    assert not (tmp_path / "o.jsonl").exists()
    assert "predictions" in loraft(*file, cwd=tmp_path).stdout
    again = loraft(*file, cwd=tmp_path)
    assert again.returncode == 0
    assert "predictions" not in again.stdout


@pytest.mark.slow
def test_the_layers_of_a_classifier_on_a_bare_encoder_are_counted(tmp_path: Path) -> None:
    """The adapter's names are those of the model with its head; a bare encoder's lack their first part."""
    setting(tmp_path)
    AutoModel.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "base")
    checked = told(loraft("check", "c.yaml", "--json", cwd=tmp_path))["adapter"]
    assert loraft("train", "c.yaml", "training.max_steps=1", cwd=tmp_path).returncode == 0
    looked = told(loraft("inspect-layers", "run", "--json", cwd=tmp_path))
    assert looked["architecture"] == "BertForSequenceClassification"
    assert looked["lora"]["layers"] == {"encoder": checked["layers"]}
    assert looked["lora"]["parameters"] + looked["lora"]["saved_parameters"] == checked["trainable_parameters"]
    assert [len(layer["modules"]) for layer in looked["layers"]] == [6] * len(checked["layers"])
    assert all(module["lora_parameters"] for layer in looked["layers"] for module in layer["modules"])


def test_what_does_not_classify_and_what_does_not_write_name_each_others_command(tmp_path: Path) -> None:
    setting(tmp_path, "llama")
    loraft("train", "c.yaml", "training.max_steps=1", cwd=tmp_path)
    for words in (("generate", "run", "--prompt", "x"), ("chat", "run")):
        refused = loraft(*words, cwd=tmp_path)
        assert refused.returncode == 2
        assert "loraft predict run --text TEXT" in refused.stderr
    refused = loraft("predict", "base", "--text", "x", cwd=tmp_path)
    assert refused.returncode == 2
    assert "has no head that tells classes" in refused.stderr


BAD_ROWS = [
    ({"text": "a", "label": "lost"}, "eval.jsonl", r"eval.jsonl:8 label: 'lost' is none of the 3 classes"),
    ({"text": "a", "label": ["late", "fine"]}, "train.jsonl", "train.jsonl:25 label: has 2 labels"),
    ({"text": "a", "label": 0.5}, "train.jsonl", "train.jsonl:25 label: is 0.5, and a class is text or a whole number"),
    ({"text": " ", "label": "late"}, "train.jsonl", "train.jsonl:25 text: is empty"),
]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("row", "file", "message"), BAD_ROWS)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], file: str, message: str) -> None:
    setting(tmp_path)
    with (tmp_path / file).open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    refused = loraft("check", "c.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.split())


OTHERS = [
    (("training.class_weights={late: 1, gone: 2}",), "training.class_weights: there is no class gone"),
    (("data.labels=[late]",), "there is nothing to tell apart"),
    (("training.metric_for_best_model=accuracy", "task=causal_lm"), "accuracy is measured of classifiers"),
]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("overrides", "message"), OTHERS)
def test_bad_settings_are_named(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    setting(tmp_path)
    refused = loraft("check", "c.yaml", *overrides, cwd=tmp_path)
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.split())


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("granite", "needs a family that transformers has a classifier of"),
        ("t5", "the tokenizer ends no row, and a classifier of type t5 decides at the end of text"),
    ],
)
def test_a_base_that_no_classifier_is_made_of_is_refused(tmp_path: Path, model_type: str, said: str) -> None:
    setting(tmp_path, model_type)
    refused = loraft("check", "c.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert said in " ".join(refused.stderr.split())


BAD_INPUT = [
    ('{"label": "late"}', "in.jsonl:1 text: is missing"),
    ('{"text": ""}', "in.jsonl:1 text: is empty"),
    ('{"text": "a", "prediction": "x"}', "in.jsonl:1 prediction: an answer adds this field"),
]


@pytest.mark.parametrize(("line", "message"), BAD_INPUT)
def test_bad_rows_to_predict_are_refused_before_anything_is_written(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(line + "\n")
    refused = loraft("predict", "any", "--input", "in.jsonl", "--output", "o.jsonl", cwd=tmp_path)
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.slow
def test_the_columns_of_the_run_are_those_of_a_new_file(tmp_path: Path) -> None:
    setting(tmp_path)
    for name in ("train", "eval"):
        renamed = [{"Frage": row["text"], "Klasse": row["label"]} for row in labelled_rows(24)]
        write_rows(tmp_path / f"{name}.jsonl", renamed)
    config = (tmp_path / "c.yaml").read_text()
    (tmp_path / "c.yaml").write_text(config.replace("data: {", "data: {columns: {text: Frage, label: Klasse}, "))
    assert loraft("train", "c.yaml", "training.max_steps=1", cwd=tmp_path).returncode == 0
    found = []
    for column in ("Frage", "text"):  # one that has not the columns of the run is read by its own
        write_rows(tmp_path / f"{column}.jsonl", [{column: "the order is late"}, {column: "the text"}])
        words = ("--input", f"{column}.jsonl", "--output", f"{column}.out.jsonl", "--json")
        assert told(loraft("predict", "run", *words, cwd=tmp_path))["rows"] == 2
        found.append([row["probabilities"] for row in lines(tmp_path / f"{column}.out.jsonl")])
    assert found[0] == found[1]

    # Without a file the rows go to standard output; a .csv file has a column for each probability.
    # Characters that Python takes for line ends are in the middle of a row.
    ids = ["a\u2028b", "\x85"]
    texts = ("the order is late", "the text")
    write_rows(tmp_path / "text.jsonl", [{"text": text, "id": name} for text, name in zip(texts, ids, strict=True)])
    asked = loraft("predict", "run", "--input", "text.jsonl", cwd=tmp_path)
    assert [json.loads(line)["probabilities"] for line in asked.stdout.split("\n")[:-1]] == found[0]
    assert [row["probabilities"] for row in told(loraft("predict", "run", "--input", "text.jsonl", "--json",
                                                         cwd=tmp_path))] == found[0]  # fmt: skip
    table = ("predict", "run", "--input", "text.jsonl", "--output", "o.csv", "--json")
    assert told(loraft(*table, cwd=tmp_path))["rows"] == 2
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["the order is late", "the text"]
    labels = list(found[0][0])
    assert [{label: float(row[f"probability_{label}"]) for label in labels} for row in rows] == found[0]
    assert [row["prediction"] for row in rows] == [max(each, key=each.__getitem__) for each in found[0]]
    assert not list(tmp_path.glob(".o.csv*")), "nothing is left beside it"
    write_rows(tmp_path / "named.jsonl", [{"text": "a", "probability_late": 1.0}])
    lost = ("predict", "run", "--input", "named.jsonl", "--output")
    assert "named.jsonl:1 probability_late: an answer adds this field" in refused(loraft(*lost, "n.csv", cwd=tmp_path))
    assert loraft(*lost, "n.jsonl", cwd=tmp_path).returncode == 0
    again = loraft(*table, cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert loraft(*table, "--overwrite", cwd=tmp_path).returncode == 0

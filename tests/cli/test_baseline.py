"""`loraft baseline`, from configs to tables, JSON, pictures and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft import errors
from loraft.baselines import train_baseline, train_recurrent
from tests.cli.running import loraft, refused
from tests.tiny import save_tiny
from tests.training.building import pairs, rows, write_rows
from tests.training.classifiers import labelled_rows
from tests.words import Wording

CONFIG = """\
task: {task}
model: {{name_or_path: {model}, dtype: float32}}
data: {{train: {name}.jsonl, eval: 0.4, max_length: 128}}
lora: {{r: 4}}
training: {{max_steps: 4, output_dir: {name}, learning_rate: 1e-2}}
generation: {{max_new_tokens: 8, temperature: 0}}
"""
WRITTEN_TOKENS = train_baseline.WRITTEN_TOKENS
KEYS = {
    "task", "train_rows", "rows", "compared_with", "networks", "training", "differences", "gradient", "samples",
    "findings", "confidence", "resamples",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama and a BERT, a run of each, and rows."""
    folder = tmp_path_factory.mktemp("made")
    for model, name, task, given in (
        ("llama", "chats", "causal_lm", rows(14)),
        ("bert", "topics", "seq_cls", labelled_rows(14)),
    ):
        save_tiny(folder / model, model)
        write_rows(folder / f"{name}.jsonl", given)
        (folder / f"{name}.yaml").write_text(CONFIG.format(task=task, model=model, name=name))
        assert loraft("train", f"{name}.yaml", cwd=folder).returncode == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be written into; networks learn for a moment, and few tokens are timed."""
    monkeypatch.setattr(train_baseline, "WRITTEN_TOKENS", 8)
    monkeypatch.setattr(train_recurrent, "MOST_ROUNDS", 3)
    monkeypatch.setattr(train_recurrent, "TRIED_ROUNDS", 1)
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


def told(place: Path, *words: str) -> dict[str, Any]:
    done = loraft("baseline", *words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.slow
def test_what_writes_stands_beside_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_baseline, "WRITTEN_TOKENS", WRITTEN_TOKENS)
    found = told(place, "chats.yaml")
    assert found.keys() == KEYS
    assert (found["task"], found["rows"], found["compared_with"]) == ("causal_lm", 6, "chats/adapter")
    assert found["train_rows"] == 8
    tuned, network = found["networks"]
    assert (tuned["name"], network["name"]) == ("fine-tuned", "lstm")
    assert set(tuned["figures"]) == {"loss", "perplexity", "exact_match"}
    assert network["parameters"] == network["trained_parameters"]
    assert 0 < tuned["trained_parameters"] < tuned["parameters"]
    assert tuned["tokens_per_second"] > 0
    # Keys and values of two heads of 8 float32 numbers in three layers; a hidden and a cell state of 256.
    assert tuned["writing"]["tokens"] == 100
    assert tuned["writing"]["bytes_a_token"] == 2 * 2 * 8 * 4 * 3
    assert (network["writing"]["bytes_a_token"], network["writing"]["state_bytes"]) == (0, 2 * 256 * 4)
    assert tuned["row_seconds"] is None
    apart = found["differences"]["lstm"]["loss"]
    assert apart["difference"] == pytest.approx(tuned["figures"]["loss"] - network["figures"]["loss"])
    assert apart["low"] <= apart["difference"] <= apart["high"]
    (training,) = found["training"]
    assert training["rounds"] == 3
    assert [each["learning_rate"] for each in training["tried"]] == [1e-3, 3e-3, 1e-2]
    reach = found["gradient"]
    assert [each["name"] for each in reach["networks"]] == ["fine-tuned", "lstm", "lstm, untrained"]
    assert {len(each["relative"]) for each in reach["networks"]} == {min(200, reach["length"] - 1)}
    assert all(each.keys() == {"name", "relative", "factor", "orders"} for each in reach["networks"])
    assert all(sample["answers"].keys() == {"fine-tuned", "lstm"} for sample in found["samples"])


@pytest.mark.slow
def test_its_figures_are_those_of_an_evaluation(place: Path) -> None:
    for name in ("chats", "topics"):
        done = loraft("evaluate", name, "--json", cwd=place)
        found = json.loads(done.stdout)
        figures = told(place, f"{name}.yaml")["networks"][0]["figures"]
        assert figures["loss"] == pytest.approx(found["loss"], rel=1e-6)
        assert {key: figures[key] for key in found["metrics"]} == pytest.approx(found["metrics"])


@pytest.mark.slow
def test_classifiers_of_both_cells_stand_beside_the_run(place: Path) -> None:
    found = told(place, "topics.yaml", "--cell", "both")
    assert [each["name"] for each in found["networks"]] == ["fine-tuned", "lstm", "rnn"]
    assert all(set(each["figures"]) == {"loss", "accuracy", "macro_f1", "mcc"} for each in found["networks"])
    assert all(each["writing"] is None and each["row_seconds"] > 0 for each in found["networks"])
    padded = [each["padded"] for each in found["networks"]]
    assert all(each["padding"] > 0 for each in padded), "C50: the last real token decides"
    assert [each["loss_padded"] for each in padded] == pytest.approx([each["loss_alone"] for each in padded], abs=1e-5)
    assert set(found["differences"]) == {"lstm", "rnn"}
    assert len(found["gradient"]["networks"]) == 5
    assert found["samples"][0]["answers"]["rnn"] in ("late", "fine", "other")


@pytest.mark.slow
def test_the_seed_repeats_it(place: Path) -> None:
    def lasting(seed: int) -> Any:
        found = told(place, "topics.yaml", f"seed={seed}", "--run", "topics", "--cell", "rnn")
        return [each["figures"] for each in found["networks"]], found["gradient"]["networks"]

    first = lasting(3)
    assert lasting(3) == first
    assert lasting(4) != first


@pytest.mark.slow
def test_before_there_is_a_run_the_base_stands_beside(place: Path) -> None:
    done = loraft("baseline", "chats.yaml", "training.output_dir=none", "--cell", "rnn", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "there is no run of this config yet: its base stands beside" in " ".join(done.stderr.split())
    assert "base" in done.stdout
    assert "fine-tuned" not in done.stdout


@pytest.mark.slow
def test_a_base_that_is_named_is_called_one(place: Path) -> None:
    found = told(place, "chats.yaml", "--run", "llama", "--cell", "rnn")
    assert (found["compared_with"], found["networks"][0]["name"]) == ("llama", "base")
    assert found["networks"][0]["trained_parameters"] == 0


@pytest.mark.slow
def test_a_classifier_without_a_head_leaves_the_network_alone(place: Path) -> None:
    done = loraft("baseline", "topics.yaml", "training.output_dir=none", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "the network stands alone; after loraft train CONFIG it stands beside" in " ".join(done.stderr.split())
    assert "accuracy" in done.stdout
    found = told(place, "topics.yaml", "training.output_dir=none")
    assert (found["compared_with"], found["differences"]) == (None, {})
    assert [each["name"] for each in found["networks"]] == ["lstm"]


@pytest.mark.slow
def test_plain_text_is_gone_on_with(place: Path) -> None:
    write_rows(place / "texts.jsonl", [{"text": "the order is late and the answer is in the text"}] * 6)
    found = told(place, "chats.yaml", "data.train=texts.jsonl", "training.output_dir=none")
    assert [set(each["figures"]) for each in found["networks"]] == [{"loss", "perplexity"}] * 2
    sample = found["samples"][0]
    assert sample["asked"] + sample["reference"] == "the order is late and the answer is in the text"
    assert sample["answers"].keys() == {"base", "lstm"}


@pytest.mark.slow
def test_a_network_that_there_is_not_is_refused(place: Path) -> None:
    from loraft import InvalidInputError, load_config, train_baseline

    config = load_config(place / "chats.yaml")
    for cells in (("gru",), ()):
        with pytest.raises(InvalidInputError, match="the networks are lstm and rnn, and not") as error:
            train_baseline(config, cells=cells)  # type: ignore[arg-type]
        assert error.value.problems[0].parameter == "cells"


@pytest.mark.slow
def test_a_run_on_other_rows_is_told_of(place: Path) -> None:
    write_rows(place / "more.jsonl", rows(20))
    done = loraft("baseline", "chats.yaml", "data.train=more.jsonl", "--run", "chats", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "perhaps what is held out here" in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["80", "200"])
def test_tables_are_read_in_few_columns_and_many(place: Path, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from loraft.cli import console

    monkeypatch.setattr(console, "PIPE_WIDTH", int(columns))
    monkeypatch.setenv("COLUMNS", columns)
    done = loraft("baseline", "chats.yaml", "--cell", "both", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "other rows" not in " ".join(done.stderr.split())
    assert max(map(len, done.stdout.splitlines())) <= int(columns)
    for title in (
        "lstm from scratch",
        "what each takes",
        "quality on the held-out rows",
        "gradient",
        "sample",
        "found",
    ):
        assert title in done.stdout
    assert "more a token" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "begins"), [("p.png", b"\x89PNG"), ("p.SVG", b"<?xml")])
def test_the_gradients_are_drawn(place: Path, name: str, begins: bytes) -> None:
    done = loraft("baseline", "topics.yaml", "--plot", name, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"wrote {name}\n")
    assert (place / name).read_bytes().startswith(begins)
    assert told(place, "topics.yaml", "--plot", name)["plot"] == name


def test_rows_too_short_for_a_distance_are_told_of(place: Path) -> None:
    write_rows(place / "a.jsonl", [{"text": word, "label": label} for word, label in (("a", "late"), ("b", "fine"))])
    found = told(place, "topics.yaml", "data.train=a.jsonl", "data.eval=[a.jsonl]", "training.output_dir=none")
    assert found["gradient"]["networks"] == []
    assert found["findings"][-1] == "the held-out rows are too short to tell how far gradients reach"


@pytest.mark.parametrize(
    "words",
    [
        ["chats.yaml", "data.eval=null"],
        ["chats.yaml", "data.streaming=true", "data.eval=null"],
        ["turns.yaml"],
        ["chats.yaml", "task=preference"],
        ["chats.yaml", "--run", "topics"],
        ["topics.yaml", "--run", "chats"],
        ["topics.yaml", "--run", "other-topics"],
        ["chats.yaml", "--run", "nowhere/to-be-found"],
        ["chats.yaml", "--plot", "p.pdf"],
        ["chats.yaml", "--plot", "nowhere/p.png"],
        ["chats.yaml", "--plot", "folder.png"],
        ["chats.yaml", "--cell", "gru"],
    ],
    ids=" ".join,
)
def test_what_is_refused_before_anything_is_trained(place: Path, words: list[str], wording: Wording) -> None:
    save_tiny(place / "t5", "t5")
    write_rows(place / "turns.jsonl", pairs(8))
    (place / "turns.yaml").write_text(CONFIG.format(task="seq2seq_lm", model="t5", name="turns"))
    shutil.copytree(place / "topics", place / "other-topics")
    for record in (place / "other-topics/adapter").glob("loraft*.json"):
        record.write_text(record.read_text().replace('"late"', '"early"'))
    (place / "folder.png").mkdir()
    wording(refused(loraft("baseline", *words, cwd=place)))


def test_a_picture_needs_its_package(place: Path, monkeypatch: pytest.MonkeyPatch, wording: Wording) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda _: None)
    wording(refused(loraft("baseline", "chats.yaml", "--plot", "p.png", cwd=place)))


def test_a_run_that_has_not_ended_is_refused(place: Path, wording: Wording) -> None:
    shutil.rmtree(place / "chats/adapter")
    wording(refused(loraft("baseline", "chats.yaml", cwd=place)))


@pytest.mark.slow
def test_a_run_of_another_tokenizer_is_refused(place: Path, wording: Wording) -> None:
    from tests.tiny import tiny_tokenizer

    save_tiny(place / "other")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["customerly"])
    tokenizer.save_pretrained(place / "other")
    overrides = ("model.name_or_path=other", "training.output_dir=others")
    assert loraft("train", "chats.yaml", *overrides, cwd=place).returncode == 0
    wording(refused(loraft("baseline", "chats.yaml", "--run", "others", cwd=place)).partition("as asked for ")[2])


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "where",
    [
        "baselines.train_baseline.train_recurrent",
        "baselines.train_baseline.gradient_reach",
        "evaluation.evaluator._tally",
    ],
)
def test_memory_that_runs_out_is_told_with_what_helps(place: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"loraft.{where}", out)
    done = loraft("baseline", "chats.yaml", cwd=place)
    assert done.returncode == 3
    assert "error: data.max_length: the device ran out of memory" in done.stderr
    assert "--batch-size" not in done.stderr
    assert "Traceback" not in done.stderr

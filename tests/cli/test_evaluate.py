"""`loraft evaluate` as a person runs it: real processes, real files, tables and JSON, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from loraft.cli.commands.evaluate import MeasureOptions
from loraft.evaluation.open_model import GROUPS
from loraft.tasks import TASKS
from loraft.tasks.task import ROUGE
from tests.cli.running import loraft, refused
from tests.inference.voices import adapter_in, base_in
from tests.tiny import save_tiny
from tests.training.building import rows, write_rows
from tests.words import Wording

SETTINGS = ("--dtype", "float32", "--max-new-tokens", "6")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter, a trained run and rows."""
    folder = tmp_path_factory.mktemp("made")
    base_in(folder / "base")
    adapter_in(folder / "a", folder / "base")
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", rows())
    write_rows(folder / "rows.jsonl", rows(9))
    (folder / "c.yaml").write_text(
        "model: {name_or_path: model, dtype: float32}\n"
        "data: {train: train.jsonl, eval: 0.4, max_length: 256}\n"
        "lora: {r: 4}\n"
        "training: {max_steps: 4, output_dir: run}\n"
        "generation: {max_new_tokens: 8, temperature: 0}\n"
    )
    assert loraft("train", "c.yaml", cwd=folder).returncode == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, to be written into."""
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("target", ["run", "c.yaml", "run/adapter", "run/checkpoints/step-000004"])
def test_a_run_is_measured_on_its_own_held_out_rows(place: Path, target: str) -> None:
    """The loss is that which training logged last."""
    done = loraft("evaluate", target, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    logged = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    assert told["loss"] == pytest.approx([line["eval_loss"] for line in logged if "eval_loss" in line][-1], rel=1e-5)
    assert told.keys() >= {"target", "task", "data", "rows", "references", "tokens", "perplexity", "metrics", "seconds"}
    assert (told["target"], told["task"], told["baseline"]) == (target, "causal_lm", None)
    assert told["metrics"].keys() == {"exact_match"}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", ["1", "3", "8"])
def test_c38_the_batch_size_changes_no_figure(place: Path, batch_size: str) -> None:
    """C38, from the command line: 1e-6 is float32's order of sums."""
    words = ("evaluate", "a", "--data", "rows.jsonl", *SETTINGS, "--metrics", "exact_match,chrf", "--json")
    alone = json.loads(loraft(*words, "--batch-size", "9", cwd=place).stdout)
    told = json.loads(loraft(*words, "--batch-size", batch_size, cwd=place).stdout)
    assert told["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert (told["tokens"], told["metrics"]) == (alone["tokens"], alone["metrics"])


@pytest.mark.slow
def test_the_table_shows_base_adapter_and_difference(place: Path) -> None:
    words = ("evaluate", "a", "--data", "rows.jsonl", *SETTINGS, "--baseline", "--metrics", "bleu,rouge")
    done = loraft(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout
    for name in ("loss", "perplexity", "bleu", "rouge1", "rouge2", "rougeL"):
        assert f"\n  {name}" in done.stdout
    assert "nrefs:1|case:mixed" in done.stdout
    told = json.loads(loraft(*words, "--json", cwd=place).stdout)
    apart = told["baseline"]["differences"]["loss"]
    assert apart["difference"] == pytest.approx(told["loss"] - told["baseline"]["loss"])
    assert told["baseline"]["confidence"] == 0.95
    assert told["signatures"]["bleu"].startswith("nrefs:1|")


@pytest.mark.slow
def test_an_adapter_stands_alone_or_on_a_base_that_is_named(place: Path) -> None:
    words = ("--data", "rows.jsonl", "--metrics", "loss", "--dtype", "float32", "--json")
    one = json.loads(loraft("evaluate", "a", *words, cwd=place).stdout)
    two = json.loads(loraft("evaluate", "--adapter", "a", *words, cwd=place).stdout)
    three = json.loads(loraft("evaluate", "base", "--adapter", "x=a", *words, cwd=place).stdout)
    assert one["loss"] == two["loss"] == three["loss"]
    quantized = json.loads(loraft("evaluate", "a", "--quantize", "nf4", *words, cwd=place).stdout)
    assert quantized["loss"] != one["loss"]
    assert one["metrics"] == {}


@pytest.mark.slow
def test_of_several_adapters_the_figures_say_whose_they_are(place: Path) -> None:
    words = ("--data", "rows.jsonl", "--metrics", "loss", "--dtype", "float32")
    two = loraft("evaluate", "--adapter", "one=a", "--adapter", "two=a", *words, cwd=place)
    assert two.returncode == 0, two.stderr
    assert "note: one is measured, and two not: give each alone as --adapter" in two.stderr
    assert re.search(r"figures of +one$", two.stdout, flags=re.MULTILINE)
    alone = loraft("evaluate", "a", *words, cwd=place)
    assert re.search(r"figures of +a$", alone.stdout, flags=re.MULTILINE)


@pytest.mark.slow
def test_rows_are_written_with_prediction_reference_loss_and_tokens(place: Path) -> None:
    words = ("evaluate", "a", "--data", "rows.jsonl", *SETTINGS, "--output", "o.jsonl")
    assert loraft(*words, "--limit", "4", cwd=place).returncode == 0
    lines = [json.loads(line) for line in (place / "o.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [f"rows.jsonl:{number}" for number in range(1, 5)]
    assert lines[0].keys() >= {"input", "prediction", "reference", "loss", "tokens"}
    before = (place / "o.jsonl").read_bytes()
    assert "holds something already" in refused(loraft(*words, cwd=place))
    assert (place / "o.jsonl").read_bytes() == before
    assert loraft(*words, "--overwrite", cwd=place).returncode == 0
    assert len((place / "o.jsonl").read_text().splitlines()) == 9


@pytest.mark.slow
def test_every_format_of_training_is_a_format_of_evaluation(place: Path) -> None:
    write_rows(place / "alpaca.jsonl", [{"instruction": "say", "output": "so", "text": "say so"}])
    (place / "pairs.csv").write_text("prompt,completion\nthe order, is late\n")
    for words, has_answer in (
        (["alpaca.jsonl"], True),
        (["alpaca.jsonl", "--format", "text"], False),
        (["pairs.csv"], True),
        (["builtin:tickets", "--split", "eval", "--limit", "2"], True),
    ):
        done = loraft("evaluate", "a", *SETTINGS, "--json", "--data", *words, cwd=place)
        assert done.returncode == 0, done.stderr
        assert ("exact_match" in json.loads(done.stdout)["metrics"]) is has_answer


def test_valid_json_is_measured_where_every_right_answer_is_json(place: Path) -> None:
    write_rows(place / "j.jsonl", [{"prompt": "a", "completion": '{"b": 1}'}, {"prompt": "c", "completion": "[2]"}])
    told = json.loads(loraft("evaluate", "a", *SETTINGS, "--json", "--data", "j.jsonl", cwd=place).stdout)
    assert told["metrics"].keys() == {"exact_match", "valid_json"}


def test_a_row_longer_than_the_limit_is_left_out_and_said(place: Path) -> None:
    write_rows(place / "long.jsonl", [*rows(3), {"messages": [
        {"role": "user", "content": "the order"}, {"role": "assistant", "content": "late " * 300},
    ]}])  # fmt: skip
    done = loraft("evaluate", "run", "--data", "long.jsonl", "--metrics", "loss", "--json", cwd=place)
    assert json.loads(done.stdout)["rows"] == 3
    assert "1 of 4 rows are longer than data.max_length 256" in done.stderr


BAD_ROWS = {
    "empty.jsonl": ("", "empty.jsonl --data: is empty"),
    "rows.doc": ("hi", "files of type .doc are not read"),
    "broken.jsonl": ('{"prompt": "a", "completion": "b"}\n{"prompt": ', "broken.jsonl:2: is not JSON"),
    "field.jsonl": (
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n',
        "field.jsonl:2 completion: is missing; the row has prompt Mend the row, or leave it out.",
    ),
    "type.jsonl": (
        '{"prompt": "a", "completion": 3}\n',
        "type.jsonl:1 completion: must be text; found a number Put it in quotes",
    ),
    "hollow.jsonl": ('{"prompt": "a", "completion": " "}\n', "hollow.jsonl:1 completion: is empty"),
    "other.jsonl": ('{"a": 1}\n', "which is none of the formats that task causal_lm takes"),
    "list.json": ('{"rows": []}', "list.json --data: must hold a list of objects"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_before_a_model_is_loaded(place: Path, name: str) -> None:
    """The base of the adapter is gone: nobody got as far as to miss its weights."""
    text, message = BAD_ROWS[name]
    (place / name).write_text(text)
    (place / "base/model.safetensors").unlink()
    assert message in refused(loraft("evaluate", "a", "--data", name, "--output", "o.jsonl", cwd=place))
    assert not (place / "o.jsonl").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["a", "--data", "rows.jsonl", "--metrics", "blue"],
        ["a", "--data", "rows.jsonl", "--metrics", "accuracy"],
        ["a", "--data", "rows.jsonl", "--metrics", ","],
        ["a", "--data", "row.jsonl"],
        ["a", "--data", "base"],
        ["a"],
        ["base", "--data", "rows.jsonl", "--baseline"],
        ["a", "--data", "rows.jsonl", "--output", "base"],
        ["a", "--data", "rows.jsonl", "--output", "no/o.jsonl"],
        ["a", "--data", "rows.jsonl", "--output", "rows.jsonl", "--overwrite"],
        ["a", "--data", "rows.jsonl", "--output", "c.yaml"],
        ["a", "--data", "rows.jsonl", "--overwrite"],
        ["a", "--split", "eval"],
        ["a", "--data", "rows.jsonl", "--columns", "prompt"],
        ["a", "--data", "builtin:tickets", "--columns", "promt=x"],
        ["a", "--data", "builtin:tickets", "--split", "evil"],
        ["nobody/nothing", "--data", "rows.jsonl"],
        ["absent.yaml"],
        [],
    ],
    ids=" ".join,
)
def test_what_is_refused(place: Path, words: list[str], wording: Wording) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    told = refused(loraft("evaluate", *words, cwd=place))
    wording(told)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_run_without_held_out_rows_asks_for_a_file(place: Path) -> None:
    assert loraft("train", "c.yaml", "data.eval=null", "--overwrite", cwd=place).returncode == 0
    assert "the run held none out (data.eval is null)" in refused(loraft("evaluate", "run", cwd=place))
    (place / "train.jsonl").unlink()
    told = refused(loraft("evaluate", "run", "--data", "train.jsonl", cwd=place))
    assert "train.jsonl --data: there is no such file" in told


def test_held_out_rows_that_are_gone_are_named(place: Path) -> None:
    (place / "train.jsonl").unlink()
    told = refused(loraft("evaluate", "run", cwd=place))
    assert "train.jsonl: the rows that the run held out cannot be read from here" in told


@pytest.mark.slow
def test_smollm2_learns_tickets_and_that_is_measured(smollm2: Path, tmp_path: Path) -> None:
    """After 12 steps the loss on held-out tickets has fallen for certain, and answers have become JSON."""
    (tmp_path / "c.yaml").write_text(
        "model: {name_or_path: 'builtin:smollm2-135m-instruct'}\n"
        "data: {train: 'builtin:tickets', eval: null, max_length: 256}\n"
        "training: {max_steps: 12, learning_rate: 2e-3, output_dir: run}\n"
        "generation: {max_new_tokens: 64, temperature: 0}\n"
    )
    assert loraft("train", "c.yaml", cwd=tmp_path).returncode == 0
    words = ("evaluate", "run", "--data", "builtin:tickets", "--split", "eval", "--limit", "8", "--baseline")
    done = loraft(*words, "--output", "rows.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["loss"] < 0.5 < told["baseline"]["loss"]
    assert told["baseline"]["differences"]["loss"]["high"] < 0
    assert told["metrics"].keys() == {"exact_match", "valid_json"}
    assert told["metrics"]["valid_json"] > 0.8 > told["baseline"]["metrics"]["valid_json"]
    assert told["baseline"]["differences"]["valid_json"]["low"] > 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 8


def test_every_metric_that_may_be_asked_for_is_in_the_help() -> None:
    said = next(each.metadata["typer"]().help for each in fields(MeasureOptions) if each.name == "metrics")
    asked_for = {name for task in TASKS.values() for name in task.metrics.offered} - set(ROUGE) | set(GROUPS)
    assert [name for name in asked_for if name not in said] == []

"""`api.evaluate` on pairs: the figures are those of the run, of every row, and of the formula."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from loraft import api
from loraft.config.sections import DataSource
from loraft.dataset.build import prepare
from loraft.errors import InvalidInputError
from loraft.evaluation.evaluator import Evaluation
from loraft.events import Event, Note
from loraft.inference.requests import ModelRequest
from loraft.models.load_model import load_tokenizer
from tests.training.building import preferred, rows, tiny_config, write_rows

BETA = 0.1
FIGURES = ("accuracy", "margin", "chosen_reward", "rejected_reward")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that held three pairs out, and rows of its own."""
    folder = tmp_path_factory.mktemp("pairs")
    api.train(tiny_config(folder, task="preference", data__eval=0.25, training__max_steps=4))
    write_rows(folder / "pairs.jsonl", preferred(7))
    return folder


def evaluated(target: Path, **arguments: Any) -> Evaluation:
    return api.evaluate(ModelRequest(str(target), dtype="float32"), **arguments)


def logged(run: Path) -> dict[str, float]:
    """What the run itself measured last."""
    found: dict[str, float] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return found


def likely(model: Any, ids: list[int], labels: list[int]) -> torch.Tensor:
    """The log-likelihood of what is compared in one text, by transformers' own forward."""
    with torch.no_grad():
        shares = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return sum((shares[at, each] for at, each in enumerate(labels[1:]) if each != -100), torch.zeros(()))


@pytest.mark.slow
def test_a_run_is_measured_on_the_pairs_that_it_held_out_as_it_measured_them(place: Path) -> None:
    """And its base, which is the reference: a loss of ln 2, no margin, and no order that it could tell."""
    found, own = evaluated(place / "run", baseline=True), logged(place / "run")
    assert (found.task, found.rows, found.measured.perplexity) == ("preference", 3, None)
    assert tuple(found.measured.metrics) == FIGURES
    for name, value in found.measured.figures.items():
        assert value == pytest.approx(own[f"eval_{name}"], abs=1e-6)
    assert found.baseline is not None
    assert found.baseline.loss == pytest.approx(math.log(2), abs=1e-6)
    assert list(found.baseline.metrics.values()) == [0.5, 0, 0, 0]
    assert found.differences.keys() == found.measured.figures.keys()
    margin = found.differences["margin"]
    assert margin.low <= margin.difference <= margin.high
    assert margin.difference == pytest.approx(found.measured.metrics["margin"])


@pytest.mark.slow
def test_the_figures_are_those_of_the_rows_in_the_file_and_of_the_formula(place: Path, tmp_path: Path) -> None:
    """Each row against Rafailov's equation 7 on transformers' logits, row by row; 1e-5: float32 sums of them."""
    found = evaluated(place / "run", data=place / "pairs.jsonl", output=tmp_path / "o.jsonl", batch_size=3)
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == [row["chosen"][0]["content"] for row in preferred(7)]
    assert lines[0].keys() == {
        "row", "input", "reference", "chosen_reward", "rejected_reward", "margin", "loss", "tokens",
    }  # fmt: skip
    config = tiny_config(place, task="preference", data__train=str(place / "pairs.jsonl"))
    base = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    examples = prepare(config, load_tokenizer(config.model, None)).train
    before = [[likely(base, text.input_ids, text.labels) for text in each.texts] for each in examples]
    trained = PeftModel.from_pretrained(base, str(place / "run/adapter")).eval()
    for line, example, reference in zip(lines, examples, before, strict=True):
        now = [likely(trained, text.input_ids, text.labels) for text in example.texts]
        chosen, rejected = (BETA * (one - other).item() for one, other in zip(now, reference, strict=True))
        assert line["chosen_reward"] == pytest.approx(chosen, abs=1e-5)
        assert line["margin"] == pytest.approx(chosen - rejected, abs=1e-5)
        assert line["loss"] == pytest.approx(-logsigmoid(torch.tensor(chosen - rejected)).item(), abs=1e-5)
    assert found.measured.loss == pytest.approx(math.fsum(line["loss"] for line in lines) / 7)
    assert found.measured.metrics["accuracy"] == sum(line["margin"] > 0 for line in lines) / 7


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_size_of_a_batch_changes_nothing(place: Path, batch_size: int) -> None:
    """1e-6: float32 sums in another order."""
    whole = evaluated(place / "run", data=place / "pairs.jsonl", batch_size=4).measured.figures
    other = evaluated(place / "run", data=place / "pairs.jsonl", batch_size=batch_size).measured.figures
    assert other == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
def test_rows_of_one_answer_each_are_measured_as_of_any_model_that_answers(place: Path) -> None:
    written = write_rows(place / "answers.jsonl", rows(4))
    found = evaluated(place / "run", data=written, metrics=["loss"])
    assert (found.task, found.rows) == ("causal_lm", 4)
    assert found.measured.perplexity == pytest.approx(math.exp(found.measured.loss))
    with pytest.raises(InvalidInputError, match="exact_match measures causal_lm"):
        evaluated(place / "run", data=place / "pairs.jsonl", metrics=["exact_match"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ipo", "orpo", "simpo", "cpo"])
def test_every_other_loss_measures_as_its_run_did(tmp_path: Path, loss: str) -> None:
    api.train(tiny_config(tmp_path, task="preference", preference__loss=loss, data__eval=0.25, training__max_steps=2))
    own = logged(tmp_path / "run")
    for name, value in evaluated(tmp_path / "run").measured.figures.items():
        assert value == pytest.approx(own[f"eval_{name}"], abs=1e-5)


@pytest.mark.slow
def test_what_every_weight_learned_is_measured_where_its_loss_has_no_reference(tmp_path: Path) -> None:
    options = {"method": "full", "preference__loss": "simpo", "training__learning_rate": 1e-3}
    api.train(tiny_config(tmp_path, task="preference", data__eval=0.25, training__max_steps=2, **options))
    own, found = logged(tmp_path / "run"), evaluated(tmp_path / "run")
    assert found.measured.metrics["margin"] == pytest.approx(own["eval_margin"], abs=1e-5)


@pytest.mark.slow
def test_what_went_on_from_an_adapter_is_compared_with_that(tmp_path: Path) -> None:
    """And no more with it where it has gone: its base would be another reference."""
    first = api.train(tiny_config(tmp_path, task="preference", training__learning_rate=0.02))
    options = {"lora__start_from": str(first.run_folder), "training__output_dir": str(tmp_path / "two")}
    api.train(tiny_config(tmp_path, task="preference", data__eval=0.25, training__max_steps=2, **options))
    own, found = logged(tmp_path / "two"), evaluated(tmp_path / "two", baseline=True)
    for name, value in found.measured.figures.items():
        assert value == pytest.approx(own[f"eval_{name}"], abs=1e-6)
    assert found.baseline is not None
    assert found.baseline.metrics["margin"] < -0.1, "the base lacks what the first run learned"
    first.run_folder.rename(tmp_path / "gone")
    with pytest.raises(InvalidInputError) as error:
        evaluated(tmp_path / "two")
    assert error.value.problems[0].key == "lora.start_from"


@pytest.mark.slow
def test_an_adapter_without_its_run_says_by_what_its_pairs_are_compared(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run/adapter", tmp_path / "alone")
    told: list[Event] = []
    found = evaluated(tmp_path / "alone", data=place / "pairs.jsonl", observer=told.append)
    assert found.measured.figures == evaluated(place / "run", data=place / "pairs.jsonl").measured.figures
    assert any("no run says" in event.text for event in told if isinstance(event, Note))
    with pytest.raises(InvalidInputError) as error:
        evaluated(tmp_path / "alone")
    assert error.value.problems[0].parameter == "data"


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("line", "key"), [("  init: loftq\n", "lora.init"), ("  add_tokens: [<a>]\n", "model.add_tokens")]
)
def test_what_began_as_another_model_than_its_base_has_no_reference_later(
    place: Path, tmp_path: Path, line: str, key: str
) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    section = f"{key.split('.', maxsplit=1)[0]}:\n"
    text = config.read_text().replace("  init: default\n", "").replace("  add_tokens: []\n", "")
    config.write_text(text.replace(section, section + line, 1))
    with pytest.raises(InvalidInputError) as error:
        evaluated(tmp_path / "run", data=place / "pairs.jsonl")
    assert error.value.problems[0].key == key


@pytest.mark.slow
def test_what_was_merged_has_no_reference_and_still_answers(place: Path, tmp_path: Path) -> None:
    api.merge(str(place / "run"), tmp_path / "merged", verified=False)
    with pytest.raises(InvalidInputError, match="dpo compares with the model as it was before training"):
        evaluated(tmp_path / "merged", data=place / "pairs.jsonl")
    written = write_rows(tmp_path / "answers.jsonl", rows(4))
    assert evaluated(tmp_path / "merged", data=written, metrics=["loss"]).rows == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "task"), [({}, "preference"), ({"prompt": "prompt", "completion": "chosen"}, "causal_lm")]
)
def test_names_of_columns_say_which_rows_they_are(
    place: Path, tmp_path: Path, columns: dict[str, str], task: str
) -> None:
    written = write_rows(tmp_path / "p.jsonl", [{"prompt": "the", "chosen": " order is late", "rejected": " answer"}])
    source = DataSource(path=str(written), columns=columns)
    assert evaluated(place / "run", data=source, metrics=["loss"]).task == task

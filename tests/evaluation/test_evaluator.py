"""`api.evaluate` on tiny models: the loss is transformers' own, whatever the batch, and memory does not grow."""

from __future__ import annotations

import json
import math
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from loraft import api
from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.dataset.build import prepare
from loraft.errors import Interrupted, NonFiniteError
from loraft.evaluation.eval_dataset import EvalPurpose, EvaluatedRows, read_eval_source, rows_of
from loraft.evaluation.evaluator import Answer, EvalModel, Evaluation, RowScore, evaluate
from loraft.evaluation.past_run import PastRun
from loraft.events import Event, Note, Progress
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.io.held_memory import peak_bytes
from loraft.tasks import TASKS
from loraft.tasks.training_metadata import SourceFormat
from tests.inference.voices import adapter_in, base_in
from tests.tiny import CHATML, mostly_slow, tiny_sizes, tiny_tokenizer
from tests.training.building import pairs, rows, tiny_config, write_rows
from tests.training.classifiers import labelled_rows

GENERATES = EvalPurpose(TASKS["causal_lm"], SourceFormat())
QUESTION = {"role": "user", "content": "q"}
SHORT = GenerationRequest(temperature=0, num_beams=1, max_new_tokens=6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    base_in(folder / "base")
    adapter_in(folder / "a", folder / "base")
    write_rows(folder / "rows.jsonl", rows(23))
    return folder


def evaluated(place: Path, target: str = "a", **arguments: Any) -> Evaluation:
    choice = ModelRequest(str(place / target), dtype="float32")
    return api.evaluate(choice, **{"data": place / "rows.jsonl", "metrics": ["loss"], "options": SHORT} | arguments)


def reference_loss(place: Path) -> tuple[float, int]:
    """Summed losses of transformers' own forward, row by row, of peft's own loading."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "base"), str(place / "a")).eval()
    source = read_eval_source(None, str(place / "base"), DataSource(path=str(place / "rows.jsonl")), GENERATES)
    total, tokens = 0.0, 0
    for item in rows_of(source, tiny_tokenizer(), positions=None).items:
        batch = {
            "input_ids": torch.tensor([item.example.input_ids]),
            "labels": torch.tensor([item.example.labels]),
        }
        with torch.no_grad():
            total += model(**batch).loss.double().item() * item.example.trained
        tokens += item.example.trained
    return total / tokens, tokens


@pytest.mark.parametrize("batch_size", mostly_slow([1, 3, 8], 3))
def test_c38_the_loss_is_that_of_transformers_for_every_batch_size(place: Path, batch_size: int) -> None:
    """C38: total negative log-likelihood / total tokens. 1e-6: float32 sums in another order."""
    found = evaluated(place, batch_size=batch_size)
    loss, tokens = reference_loss(place)
    assert found.measured.loss == pytest.approx(loss, rel=1e-6)
    assert found.measured.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found.tokens, found.rows, found.references) == (tokens, 23, 23)


@pytest.mark.slow
def test_the_rows_of_the_file_are_what_the_figures_are_made_of(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    found = evaluated(place, output=output, baseline=True, metrics=None, batch_size=2)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["row"] for line in lines] == [f"{place / 'rows.jsonl'}:{number}" for number in range(1, 24)]
    assert lines[4]["input"] == [{"role": "user", "content": rows()[4]["messages"][0]["content"]}]
    assert lines[4]["reference"] == rows()[4]["messages"][1]["content"]
    tokens = sum(line["tokens"] for line in lines)
    assert tokens == found.tokens
    for measured, said in ((found.measured, lambda line: line), (found.baseline, lambda line: line["baseline"])):
        assert measured is not None
        total = sum(said(line)["loss"] * line["tokens"] for line in lines)
        assert measured.loss == pytest.approx(total / tokens, rel=1e-6)
        assert measured.cut == sum(said(line)["finish_reason"] == "length" for line in lines)


def test_an_answer_that_ends_with_the_models_positions_is_told_apart_from_one_cut_by_the_limit(tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [{"prompt": "the order", "completion": " is late"}])
    base_in(tmp_path / "base", "gpt2", max_position_embeddings=48)
    for most, counts in ((200, (1, 1)), (2, (1, 0))):
        options = GenerationRequest(max_new_tokens=most, temperature=0)
        found = evaluated(tmp_path, "base", data=tmp_path / "p.jsonl", metrics=None, options=options).measured
        assert (found.cut, found.cut_by_positions) == counts


@pytest.mark.slow
@pytest.mark.parametrize(("most", "metrics", "count"), [(60, None, 1), (4, None, 0), (60, ["loss"], 0)])
def test_answers_beyond_the_positions_of_training_are_told_once(
    tmp_path: Path, most: int, metrics: list[str] | None, count: int
) -> None:
    base_in(tmp_path / "base", max_position_embeddings=48)
    adapter_in(tmp_path / "a", tmp_path / "base")
    write_rows(tmp_path / "p.jsonl", [{"prompt": "the order", "completion": " is late"}] * 10)
    heard: list[Event] = []
    options = GenerationRequest(max_new_tokens=most, temperature=0)
    given: dict[str, Any] = {"metrics": metrics, "baseline": True, "batch_size": 1, "options": options}
    evaluated(tmp_path, data=tmp_path / "p.jsonl", observer=heard.append, **given)
    told = [event.text for event in heard if isinstance(event, Note) and "48 positions" in event.text]
    assert len(told) == count


@pytest.mark.slow
def test_answers_are_those_of_generate(place: Path, tmp_path: Path) -> None:
    """Row by row, of the adapter and of its base."""
    output = tmp_path / "o.jsonl"
    evaluated(place, output=output, baseline=True, metrics=["exact_match"], limit=5)
    for line in map(json.loads, output.read_text().splitlines()):
        for target, said in (("a", line), ("base", line["baseline"])):
            choice = ModelRequest(str(place / target), dtype="float32")
            alone = api.generate(choice, prompt=line["input"][0]["content"], options=SHORT).completion
            assert said["prediction"] == alone.completion


@pytest.mark.slow
def test_the_base_beside_its_adapter_is_the_base_alone(place: Path) -> None:
    both = evaluated(place, baseline=True)
    alone = evaluated(place, "base")
    assert both.baseline is not None
    assert both.baseline.loss == pytest.approx(alone.measured.loss, rel=1e-6)
    apart = both.differences["loss"]
    assert apart.difference == pytest.approx(both.measured.loss - both.baseline.loss)
    assert apart.low <= apart.difference <= apart.high
    assert evaluated(place, baseline=True).differences == both.differences


def test_a_prompt_and_its_completion_are_parted_as_in_training(place: Path, tmp_path: Path) -> None:
    """The prompt ends before the first trained token: `late`'s blank is the answer's."""
    write_rows(tmp_path / "p.jsonl", [{"prompt": "the order is ", "completion": "late"}])
    found = evaluated(place, data=tmp_path / "p.jsonl", metrics=None, output=tmp_path / "o.jsonl")
    assert "exact_match" in found.measured.metrics
    line = json.loads((tmp_path / "o.jsonl").read_text())
    assert (line["input"], line["reference"]) == ("the order is ", "late")


def test_plain_text_has_a_loss_alone(place: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "t.jsonl", [{"text": "the order is late"}, {"text": "so"}])
    found = evaluated(place, data=tmp_path / "t.jsonl", metrics=None)
    assert (found.references, dict(found.measured.metrics)) == (0, {})
    assert found.measured.loss > 0


@pytest.mark.slow
def test_a_run_is_evaluated_on_what_it_held_out_to_the_loss_of_its_training(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data__eval=0.4, training__num_train_epochs=1)
    trained = api.train(config)
    held_out = prepare(config, tiny_tokenizer()).eval
    found = api.evaluate(str(tmp_path / "run"), metrics=["loss"])
    assert found.measured.loss == pytest.approx(trained.eval_loss, rel=1e-5)
    assert (found.rows, found.data) == (len(held_out), "the run's held-out rows")
    step = max((tmp_path / "run/checkpoints").iterdir())
    assert api.evaluate(str(step), metrics=["loss"]).measured.loss == pytest.approx(trained.eval_loss, rel=1e-5)


def test_a_model_trained_whole_is_evaluated_on_its_run_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method="full", data__eval=0.4, training__max_steps=2)
    trained = api.train(config)
    choice = ModelRequest(str(tmp_path / "run"), dtype="float32")
    assert api.evaluate(choice, metrics=["loss"]).measured.loss == pytest.approx(trained.eval_loss, rel=1e-5)


def few_items(place: Path, count: int = 5) -> EvaluatedRows:
    purpose = EvalPurpose(TASKS["causal_lm"], SourceFormat(), limit=count)
    source = read_eval_source(None, str(place / "base"), DataSource(path=str(place / "rows.jsonl")), purpose)
    return rows_of(source, tiny_tokenizer(), positions=None)


def measured_by(place: Path, subject: EvalModel, **arguments: Any) -> Evaluation:
    settings = {"metrics": (), "batch_size": 1, "output": None}
    return evaluate(few_items(place, 20), subject, None, **settings | {"observer": lambda _: None} | arguments)


def test_a_loss_that_is_no_number_names_its_row(place: Path) -> None:
    subject = EvalModel("a", lambda examples: [RowScore(math.nan)] * len(examples))
    with pytest.raises(NonFiniteError, match=r"rows.jsonl:\d+: the loss of a is nan"):
        measured_by(place, subject)


def test_what_was_evaluated_before_a_signal_is_in_the_file(place: Path, tmp_path: Path) -> None:
    """Windows of 4 rows; Ctrl-C in the second one."""
    told: list[Event] = []

    def read(examples: Any) -> list[RowScore]:
        if told:
            raise KeyboardInterrupt
        return [RowScore(1.0 * example.trained) for example in examples]

    subject = EvalModel("a", read, lambda prompts: [Answer("") for _ in prompts])
    with pytest.raises(Interrupted, match="stopped: 4 of 20 rows are in") as stopped:
        measured_by(place, subject, output=tmp_path / "o.jsonl", observer=told.append)
    assert stopped.value.stopped_exit_code == 130
    assert told == [Progress("rows evaluated", 4, 20)]
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 4


def _peak_growth(place: Path, sent: Any) -> None:
    """Send by how much evaluating many rows raised this process's peak of memory over that of a few."""
    evaluated(place, "wide", data=place / "few.jsonl")
    before = peak_bytes("cpu")
    found = evaluated(place, "wide", data=place / "many.jsonl")
    sent.send((peak_bytes("cpu") - before, found.tokens))


def peak_growth(place: Path) -> tuple[int, int]:
    """In a process of its own: the bytes by which many rows raise the peak of a few, and the tokens of the many.

    Args:
        place: A folder with a model `wide` and rows `few.jsonl` and `many.jsonl`.
    """
    here, there = multiprocessing.Pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on a fork of a process with threads warns; this child starts none of their work.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=_peak_growth, args=(place, there))
        process.start()
    there.close()
    growth, tokens = here.recv()
    process.join()
    return growth, tokens


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_c37_memory_does_not_grow_with_the_rows(tmp_path: Path, model_type: str) -> None:
    """C37: 1,200 rows need what 16 need, but for their texts and tokens: 30 MB is room for those.

    With 20,000 entries in the vocabulary the logits of their trained tokens alone would take over 800 MB.
    """
    place = tmp_path
    base_in(place / "wide", model_type, vocab_size=20_000)
    given = rows if model_type == "llama" else pairs
    write_rows(place / "few.jsonl", given(16))
    write_rows(place / "many.jsonl", given(1200))
    growth, tokens = peak_growth(place)
    assert 4 * 20_000 * tokens > 800e6
    assert growth < 30e6


@pytest.mark.slow
def test_c37_memory_of_a_classifier_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """C37 of classes: of a row with 1,000 of them stay two numbers, not its probabilities.

    Those of 1,200 rows, each a float of 24 bytes and the two words of its place in a dictionary, would take over 45 MB;
    where every reading was kept on purpose, the peak rose by 80 MB, and by 12 MB where none is.
    """
    names = [f"class-{number}" for number in range(1000)]
    sizes = tiny_sizes("bert", num_labels=len(names), id2label=dict(enumerate(names)))
    config = AutoConfig.for_model("bert", **sizes, label2id={name: at for at, name in enumerate(names)})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "wide")
    tiny_tokenizer().save_pretrained(tmp_path / "wide")
    for called, count in (("few", 16), ("many", 1200)):
        given = [{"text": row["text"], "label": names[at % 1000]} for at, row in enumerate(labelled_rows(count))]
        write_rows(tmp_path / f"{called}.jsonl", given)
    growth, decisions = peak_growth(tmp_path)
    assert decisions == 1200
    assert (24 + 16) * 1000 * decisions > 45e6
    assert growth < 30e6


@pytest.mark.slow
def test_every_row_of_a_file_is_evaluated_of_a_run_that_streamed_its_own(tmp_path: Path) -> None:
    """More rows than a stream is looked into before it begins."""
    write_rows(tmp_path / "rows.jsonl", rows(1100))
    run = RunConfig.model_validate(
        {"model": {"name_or_path": "x"}, "data": {"train": "gone.jsonl", "eval": None, "streaming": True}}
    )
    source = read_eval_source(PastRun(tmp_path, run), "x", DataSource(path=str(tmp_path / "rows.jsonl")), GENERATES)
    assert len(rows_of(source, tiny_tokenizer(), positions=None).items) == 1100


NAMED = {"columns": {"instruction": "Frage", "output": "Antwort"}, "format": "alpaca"}


@pytest.mark.parametrize(
    ("trained", "given", "names"),
    [
        ({}, {}, ("instruction", "output")),
        ({}, NAMED, ("Frage", "Antwort")),
        (NAMED, {}, ("Frage", "Antwort")),
        (NAMED, {}, ("instruction", "output")),
        (NAMED, {}, ("prompt", "completion")),
        (NAMED, {"columns": {"prompt": "Frage", "completion": "Antwort"}}, ("Frage", "Antwort")),
    ],
)
def test_a_file_is_read_by_the_names_that_are_given_those_of_the_run_or_its_own(
    tmp_path: Path, trained: dict[str, Any], given: dict[str, Any], names: tuple[str, str]
) -> None:
    path = str(tmp_path / "rows.jsonl")
    write_rows(tmp_path / "rows.jsonl", [{names[0]: "who?", names[1]: "me"}] * 3)
    run = RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": {"train": "gone.jsonl", **trained}})
    source = read_eval_source(PastRun(tmp_path, run), "x", DataSource(path=path, **given), GENERATES)
    assert [question.reference for asked in source.questions for question in asked.values()] == ["me"] * 3
    assert len(rows_of(source, tiny_tokenizer(), positions=None).items) == 3


@pytest.mark.parametrize("held_out", [0.5, "both"])
def test_a_file_that_is_two_sources_is_asked_in_both_ways(tmp_path: Path, held_out: object) -> None:
    """Both directions of a translation have rows of the same places."""
    path, pairs = tmp_path / "rows.jsonl", [(f"fr {n}", f"en {n}") for n in range(4)]
    write_rows(path, [{"fr": fr, "en": en} for fr, en in pairs])
    named = [{"prompt": "fr", "completion": "en"}, {"prompt": "en", "completion": "fr"}]
    ways = [{"path": str(path), "columns": columns} for columns in named]
    data = {"train": ways, "eval": ways if held_out == "both" else held_out}
    run = RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": data})
    source = read_eval_source(PastRun(tmp_path, run), "x", None, GENERATES)
    items = rows_of(source, tiny_tokenizer(), positions=None).items
    asked = [(item.question.asked, item.question.reference) for item in items if item.question is not None]
    assert len(asked) == len(items)
    assert {*asked} <= {*pairs, *((en, fr) for fr, en in pairs)}
    assert len({*asked}) == (8 if held_out == "both" else 4)


def test_rows_without_a_right_answer_among_others_are_told(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "yes"}
    write_rows(
        tmp_path / "rows.jsonl", [{"messages": [answer]}, {"messages": [{"role": "user", "content": "q"}, answer]}]
    )
    source = read_eval_source(None, "x", DataSource(path=str(tmp_path / "rows.jsonl")), GENERATES)
    found = rows_of(source, tiny_tokenizer(), positions=None)
    assert [item.question is None for item in found.items] == [True, False]
    assert [note for note in found.notes if note.startswith("1 of 2 rows have no right answer in words")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [QUESTION, {"role": "assistant", "content": "yes", "thinking": "hm"}]}, 1),
        ({"messages": [QUESTION, {"role": "assistant", "content": "yes"}]}, 0),
        ({"text": "plain text, which asks nothing"}, 0),
    ],
)
def test_that_no_conversation_has_a_right_answer_is_told(tmp_path: Path, row: dict[str, object], told: int) -> None:
    write_rows(tmp_path / "rows.jsonl", [row, row])
    source = read_eval_source(None, "x", DataSource(path=str(tmp_path / "rows.jsonl")), GENERATES)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML.replace("message['content']", "(message.thinking or '') + message.content")
    found = rows_of(source, tokenizer, positions=None)
    assert len([note for note in found.notes if "only the loss is measured" in note]) == told


@pytest.mark.slow
def test_the_training_rows_of_a_stream_are_not_read_to_evaluate(tmp_path: Path) -> None:
    """Only their first rows are looked at: a bad one far behind them is no fault of the held-out rows."""
    write_rows(tmp_path / "many.jsonl", rows(12) * 100)
    with (tmp_path / "many.jsonl").open("a") as file:
        file.write("no row\n")
    write_rows(tmp_path / "held.jsonl", rows(5))
    config = tiny_config(
        tmp_path, data__train=str(tmp_path / "many.jsonl"), data__streaming=True,
        data__eval=[{"path": str(tmp_path / "held.jsonl")}], training__max_steps=1,
    )  # fmt: skip
    api.train(config)
    assert api.evaluate(str(tmp_path / "run"), metrics=["loss"]).rows == 5


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_that_are_drawn_do_not_depend_on_how_many_are_read_at_a_time(
    place: Path, tmp_path: Path, batch_size: int
) -> None:
    """Row n draws by the seed and n: with one row at a time there are several windows."""
    drawn = GenerationRequest(temperature=1.0, seed=7, max_new_tokens=4)
    said = []
    for size in (23, batch_size):
        output = tmp_path / f"{size}.jsonl"
        evaluated(place, output=output, metrics=["exact_match"], options=drawn, batch_size=size)
        said.append([json.loads(line)["prediction"] for line in output.read_text().splitlines()])
    assert said[0] == said[1]
    assert len(set(said[0])) > 10

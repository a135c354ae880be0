"""Texts and their classes: what number a label has, and which labels are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSection
from loraft.dataset.build import PreparedData, prepare
from loraft.errors import DataError
from loraft.rows.class_names import NumberedClass
from loraft.rows.formats import ClassificationRecord
from loraft.rows.labels import class_number, labels_of
from loraft.tokenization.plain_text_rows import ClassificationRenderer
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, reading texts as BERT's does: a mark before, one behind each, and types."""
    tokenizer = tiny_tokenizer()
    begin, end = ((token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|>:0 $A:0 <|im_end|>:0",
        pair="<|im_start|>:0 $A:0 <|im_end|>:0 $B:1 <|im_end|>:1",
        special_tokens=[begin, end],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prepared(tokenizer: PreTrainedTokenizerFast, train: Any, **data: Any) -> PreparedData:
    values = {"task": "seq_cls", "model": {"name_or_path": "x"}, "data": {"train": train, "eval": None, **data}}
    return prepare(RunConfig.model_validate(values), tokenizer)


def rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


def classes(data: PreparedData) -> list[int]:
    return [example.labels[0] for example in data.train]


def test_classes_are_numbered_by_the_alphabet_and_numbers_by_size() -> None:
    assert labels_of([ClassificationRecord("x", None, name) for name in ("late", "broken", "late")]) == (
        "broken",
        "late",
    )
    assert labels_of([ClassificationRecord("x", None, name) for name in (10, 9, "2", -1)]) == ("-1", "2", "9", "10")
    assert labels_of([ClassificationRecord("x", None, name) for name in ("10", "9", "other")]) == ("10", "9", "other")


def test_true_is_one_class_however_a_file_spells_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """JSON's true and the True that Python writes into a CSV: they were four classes of train, and unknown in eval."""
    mixed = write(tmp_path / "t.jsonl", rows(True, "False", False, "TRUE", "true"))
    data = prepared(tokenizer, mixed)
    assert data.renderer.recorded["labels"] == ["false", "true"]
    assert classes(data) == [1, 0, 0, 1, 1]
    of_csv = prepared(tokenizer, write(tmp_path / "c.jsonl", rows("True", "False")), eval=mixed)
    assert of_csv.renderer.recorded["labels"] == ["False", "True"]  # what the rows say stays comparable with answers
    assert [example.labels[0] for example in of_csv.eval] == [1, 0, 0, 1, 1]
    apart = prepared(tokenizer, write(tmp_path / "a.jsonl", rows("True", "true")), labels=["True", "true"])
    assert classes(apart) == [0, 1]


@pytest.mark.parametrize("label", [0.0, 1.0, "2.0", 0.5])
def test_a_decimal_label_may_be_a_score_or_a_whole_number_that_pandas_made_decimal(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, label: float | str
) -> None:
    """Which of both one row cannot tell: 0.0 is a score of STS-B too."""
    with pytest.raises(DataError, match=r"regression.*pandas") as caught:
        prepared(tokenizer, write(tmp_path / "t.jsonl", rows(label, "late", "fine")))
    assert caught.value.problems[0].where == f"{tmp_path / 't.jsonl'}:1"


def test_a_class_called_minus_one_is_told_unless_the_config_names_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    unlabelled, told = write(tmp_path / "t.jsonl", rows(0, 1, -1, 2)), 'data.labels: ["0", "1", "2"]'
    (note,) = prepared(tokenizer, unlabelled).renderer.notes
    assert told in note
    assert not prepared(tokenizer, unlabelled, labels=["-1", "0", "1", "2"]).renderer.notes
    without = prepared(tokenizer, unlabelled, labels=["0", "1", "2"], on_bad_row="skip")
    assert (len(without.train), without.renderer.notes) == (3, ())
    assert not prepared(tokenizer, write(tmp_path / "n.jsonl", rows(-1, -2, "fine"))).renderer.notes


def test_classes_that_differ_in_case_alone_are_told(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    notes = prepared(tokenizer, write(tmp_path / "t.jsonl", rows("Late", "late", "fine"))).report.notes
    assert "Late and late are 2 classes, and differ in upper and lower case alone" in notes


def test_numbers_of_one_size_have_one_order() -> None:
    """In every process: sets have another order in each."""
    names = [f"{'0' * zeros}{number}" for zeros in range(9) for number in (2, 1)]
    assert labels_of([ClassificationRecord("x", None, name) for name in names]) == tuple(
        f"{'0' * zeros}{number}" for number in (1, 2) for zeros in reversed(range(9))
    )


def test_labels_of_text_and_of_numbers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    names = prepared(tokenizer, write(tmp_path / "a.jsonl", rows("pos", "neg", "pos")))
    assert names.renderer.recorded == {"labels": ["neg", "pos"], "pairs": False}
    assert classes(names) == [1, 0, 1]
    numbers = prepared(tokenizer, write(tmp_path / "b.jsonl", rows(10, 2, 10)))
    assert numbers.renderer.labels == ("2", "10")
    assert classes(numbers) == [1, 0, 1]
    truth = prepared(tokenizer, write(tmp_path / "c.jsonl", rows(True, False)))
    assert truth.renderer.labels == ("false", "true")


def test_a_number_is_the_place_in_the_list_of_names(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """As datasets of the Hub have it: whole numbers, and the names beside them."""
    data = prepared(tokenizer, write(tmp_path / "a.jsonl", rows(1, 0, "neg")), labels=["pos", "neg"])
    assert classes(data) == [1, 0, 1]


def test_classes_that_a_dataset_numbers_are_in_its_order_and_may_be_called_otherwise() -> None:
    """So that a number in another file is the same class, whatever comes first in the alphabet."""
    classes = NumberedClass.all_of(["world", "sports", "business"])
    assert labels_of([ClassificationRecord("x", None, each) for each in reversed(classes)]) == tuple(classes)
    assert [class_number(each, ["World", "Sports", "Money"]) for each in classes] == [0, 1, 2]
    assert [class_number(each, ["0", "1", "2"]) for each in classes] == [0, 1, 2]
    with pytest.raises(DataError):
        class_number(classes[0], ["sports", "business"])
    mixed = [*classes, "art"]
    assert labels_of([ClassificationRecord("x", None, each) for each in mixed]) == tuple(sorted(mixed))


def test_a_number_that_no_class_is_called_is_never_a_place(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Classes 1 to 3: a label 0 is a mistake, not the first class."""
    train, held = write(tmp_path / "a.jsonl", rows(1, 2, 3)), write(tmp_path / "b.jsonl", rows(1, 0))
    with pytest.raises(DataError) as caught:
        prepared(tokenizer, train, eval=held)
    assert (caught.value.problems[0].where, caught.value.problems[0].key) == (f"{held}:2", "label")


def test_labels_of_csv_are_text_and_may_be_numbers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nfine,1\nbad, 0\ngood,1\n")
    assert prepared(tokenizer, str(path)).renderer.recorded == {"labels": ["0", "1"], "pairs": False}
    assert classes(prepared(tokenizer, str(path))) == [1, 0, 1]
    assert classes(prepared(tokenizer, str(path), labels=["neg", "pos"])) == [1, 0, 1]


def test_an_unknown_label_in_eval_has_its_line_and_the_nearest_name(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", rows("positive", "negative"))
    held = write(tmp_path / "eval.jsonl", rows("positive", "Positve", "neutral"))
    with pytest.raises(DataError) as caught:
        prepared(tokenizer, train, eval=held)
    near, far = caught.value.problems
    assert (near.where, near.key, near.message) == (f"{held}:2", "label", "'Positve' is none of the 2 classes")
    assert near.remedy == "Did you mean positive? They are negative, positive."
    assert (far.where, far.remedy) == (f"{held}:3", "They are negative, positive.")
    skipping = prepared(tokenizer, train, eval=held, on_bad_row="skip")
    assert (len(skipping.eval), skipping.report.sources[1].bad) == (1, 2)


def test_an_unknown_label_is_named_as_the_file_names_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"review": "fine", "stars": name} for name in ("one", "two", "tow")])
    with pytest.raises(DataError) as caught:
        prepared(tokenizer, path, columns={"text": "review", "label": "stars"}, labels=["one", "two"])
    assert [(problem.where, problem.key) for problem in caught.value.problems] == [(f"{path}:3", "stars")]


def test_one_class_alone_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only the class 'pos', and there is nothing to tell apart"):
        prepared(tokenizer, write(tmp_path / "a.jsonl", rows("pos", "pos")))


def test_a_file_that_cannot_be_read_is_the_one_mistake(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """That there are no classes without rows follows, and was a second error."""
    with pytest.raises(DataError) as error:
        prepared(tokenizer, str(tmp_path / "gone.jsonl"))
    assert [problem.message for problem in error.value.problems] == ["there is no such file"]


def test_a_name_that_stands_twice_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tokenizer, write(tmp_path / "a.jsonl", rows("a", "b")), labels=["a", "b", "a"])
    assert (caught.value.problems[0].key, caught.value.problems[0].message) == ("data.labels", "a stands twice")


def test_pairs_of_texts_have_their_types_and_stand_among_single_ones(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pair = {"text": "the order", "text_pair": "late", "label": "yes"}
    given = [pair, {"text": "the order", "label": "no"}, {**pair, "text_pair": ""}]
    first, second, third = prepared(tokenizer, write(tmp_path / "a.jsonl", given)).train
    assert first.input_ids == tokenizer("the order", "late")["input_ids"]
    assert first.token_type_ids is not None
    assert first.token_type_ids[-1] == 1
    assert second.input_ids == third.input_ids == tokenizer("the order")["input_ids"]
    assert second.token_type_ids == [0] * len(second.input_ids)
    assert [example.where.rpartition(":")[2] for example in (first, second, third)] == ["1", "2", "3"]


def test_rows_with_another_number_of_texts_than_training_rows_are_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A class that is told by two texts cannot be told by one; a text_pair that is empty is none."""
    single, pair = {"text": "late", "label": "yes"}, {"text": "late", "text_pair": "order", "label": "no"}
    of_each = {
        name: write(tmp_path / f"{name}.jsonl", given)
        for name, given in {
            "mixed": [pair, single, {**pair, "text_pair": ""}], "pairs": [pair, {**pair, "label": "yes"}],
            "singles": [single, {**single, "label": "no"}],
        }.items()
    }  # fmt: skip

    def told(train: str, held_out: str) -> list[tuple[int, str, str]]:
        report = prepared(tokenizer, of_each[train], eval=of_each[held_out]).report
        found = [each for counts in report.sources for each in counts.findings]
        return [(each.rows, Path(each.first).name, each.what.partition(",")[0]) for each in found]

    assert told("mixed", "pairs") == [(2, "mixed.jsonl:2", "there is no text_pair")]
    assert told("pairs", "mixed") == [(2, "mixed.jsonl:2", "there is no text_pair")]
    assert told("singles", "mixed") == [(1, "mixed.jsonl:1", "there is a text_pair")]
    assert told("pairs", "pairs") == told("singles", "singles") == []


def test_a_pair_is_cut_from_the_longer_text_and_stays_closed(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    given = [{"text": "order " * 30, "text_pair": "late", "label": name} for name in ("yes", "no")]
    data = prepared(tokenizer, write(tmp_path / "a.jsonl", given), max_length=16, on_overlength="truncate")
    example = data.train[0]
    late, end = tokenizer("late", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    assert len(example.input_ids) == 16
    assert example.input_ids[-len(late) - 2 :] == [end, *late, end]
    assert example.labels == [1]


def test_pairs_that_run_together_are_told(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Most decoders' tokenizers put nothing between two texts: "late" and "fine" become "latefine"."""
    pairs = write(tmp_path / "p.jsonl", [{**row, "text_pair": "b"} for row in rows("late", "fine")])
    singles = write(tmp_path / "s.jsonl", rows("late", "fine"))
    plain = tiny_tokenizer()
    assert "puts nothing between" in "".join(prepared(plain, pairs).renderer.notes)
    assert not prepared(plain, singles).renderer.notes
    assert not prepared(tokenizer, pairs).renderer.notes


def test_the_renderer_marks_the_class(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer = ClassificationRenderer(tokenizer, labels=("neg", "pos"))
    example = renderer.examples([renderer.render(ClassificationRecord("late", None, "pos"))], ["a:1"])[0]
    assert renderer.marked(example).endswith("late<|im_end|> ⟦pos⟧")
    assert renderer.too_long(example, DataSection(train="x", max_length=2)) is not None  # type: ignore[arg-type]

"""Rows to what they say."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from loraft.config.choices import RowFormat, TaskName
from loraft.errors import DataError
from loraft.rows.formats import (
    ClassificationRecord,
    Conversation,
    LanguagePair,
    Message,
    PromptCompletion,
    Record,
    Seq2SeqRecord,
    Text,
    to_question,
    to_record,
)
from loraft.rows.row import Row
from loraft.tasks import TASKS, check_format, detect_format

ASKED, ANSWERED = Message("user", "two?"), Message("assistant", "four")
TURNS = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}]


def record(values: dict[str, Any], row_format: RowFormat, columns: dict[str, str] | None = None) -> Record:
    return to_record(Row(values, "a.jsonl:7"), row_format, columns or {})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["messages"], "messages"),
        (["id", "conversations"], "sharegpt"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["prompt", "completion"], "prompt_completion"),
        (["text"], "text"),
        (["prompt", "messages"], "messages"),
    ],
)
def test_formats_are_recognised_by_their_columns(columns: list[str], expected: str) -> None:
    assert detect_format(columns, TASKS["causal_lm"]) == expected


def test_renamed_columns_are_recognised() -> None:
    assert (
        detect_format(["frage", "antwort"], TASKS["causal_lm"], {"prompt": "frage", "completion": "antwort"})
        == "prompt_completion"
    )
    assert record(
        {"frage": "a", "antwort": "b"}, "prompt_completion", {"prompt": "frage", "completion": "antwort"}
    ) == (PromptCompletion("a", "b"))


def test_columns_that_fit_nothing_are_named_with_what_would_fit() -> None:
    with pytest.raises(DataError) as caught:
        detect_format(["question", "answer"], TASKS["causal_lm"])
    said = str(caught.value)
    for word in (
        "question",
        "answer",
        "messages",
        "conversations",
        "instruction",
        "completion",
        "text",
        "data.columns",
    ):
        assert word in said


def test_a_name_of_ours_that_no_format_knows_is_refused() -> None:
    with pytest.raises(DataError, match="mesages") as caught:
        detect_format(["chat"], TASKS["causal_lm"], {"mesages": "chat"})
    assert caught.value.problems[0].key == "data.columns"


def test_what_each_format_says() -> None:
    conversation = Conversation((ASKED, ANSWERED))
    assert record({"messages": TURNS}, "messages") == conversation
    shared = [{"from": "human", "value": "two?"}, {"from": "gpt", "value": "four"}]
    assert record({"conversations": shared}, "sharegpt") == conversation
    assert record({"instruction": "two?", "output": "four"}, "alpaca") == conversation
    assert record({"instruction": "two?", "input": "", "output": "four"}, "alpaca") == conversation
    assert record({"input": "two?", "output": "four"}, "alpaca", {"instruction": "input"}) == conversation
    asked = record({"instruction": "Add.", "input": "2 2", "output": "four", "system": "Be brief."}, "alpaca")
    assert asked == Conversation((Message("system", "Be brief."), Message("user", "Add.\n\n2 2"), ANSWERED))
    assert record({"prompt": "two? ", "completion": "four"}, "prompt_completion") == PromptCompletion("two? ", "four")
    assert record({"text": " x\n"}, "text") == Text(" x\n")


@pytest.mark.parametrize(
    ("said", "train"),
    [
        ({"train": False}, False),
        ({"weight": 0}, False),
        ({"weight": 0, "train": None}, False),
        ({"weight": 0, "train": True}, True),
        ({"weight": 0.0}, False),
        ({"weight": 1}, None),
        ({"weight": 1.0}, None),
        ({"weight": None}, None),
    ],
)
def test_an_answer_may_say_whether_it_is_trained(said: dict[str, object], train: bool | None) -> None:
    """By `train`, or as OpenAI's files have it; what is asked is not learned in any case."""
    found = record({"messages": [TURNS[0] | {"weight": 0}, TURNS[1] | said]}, "messages")
    assert found == Conversation((ASKED, Message("assistant", "four", train)))


@pytest.mark.parametrize(
    ("values", "row_format", "field"),
    [
        ({}, "messages", "messages"),
        ({"messages": None}, "messages", "messages"),
        ({"messages": []}, "messages", "messages"),
        ({"messages": "user: x"}, "messages", "messages"),
        ({"messages": [*TURNS, None]}, "messages", "messages[2]"),
        ({"messages": [*TURNS, {"role": "human", "content": "x"}]}, "messages", "messages[2].role"),
        ({"messages": [*TURNS, {"content": "x"}]}, "messages", "messages[2].role"),
        ({"messages": [*TURNS, {"role": "assistant"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": None}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": " \n"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "\ud800"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "a\0"}]}, "messages", "messages[2].content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": [1]}]}, "messages", "messages[2].content[0]"),
        ({"messages": [TURNS[0], TURNS[1] | {"train": 1}]}, "messages", "messages[1].train"),
        ({"messages": [TURNS[0], TURNS[1] | {"weight": 0.5}]}, "messages", "messages[1].weight"),
        ({"messages": [TURNS[0], TURNS[1] | {"weight": "0"}]}, "messages", "messages[1].weight"),
        ({"messages": [TURNS[0], TURNS[1] | {"weight": False}]}, "messages", "messages[1].weight"),
        ({"messages": [TURNS[0], TURNS[1] | {"weight": 2, "train": True}]}, "messages", "messages[1].weight"),
        ({"messages": [TURNS[0] | {"weight": []}, TURNS[1]]}, "messages", "messages[0].weight"),
        ({"conversations": [{"from": "gpt", "value": 1}]}, "sharegpt", "conversations[0].value"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "sharegpt", "conversations[0].from"),
        ({"instruction": "x"}, "alpaca", "output"),
        ({"instruction": "x", "input": 3, "output": "y"}, "alpaca", "input"),
        ({"prompt": "x", "completion": ""}, "prompt_completion", "completion"),
        ({"prompt": 1, "completion": "x"}, "prompt_completion", "prompt"),
        ({"text": None}, "text", "text"),
        ({"text": {"a": 1}}, "text", "text"),
    ],
)
def test_c46_a_bad_field_is_named_with_its_place(values: dict[str, Any], row_format: RowFormat, field: str) -> None:
    with pytest.raises(DataError) as caught:
        record(values, row_format)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("a.jsonl:7", field)


def test_turns_that_are_parted_into_prompt_and_completion_are_told_what_to_become() -> None:
    """As TRL has them, which prints both with a template."""
    with pytest.raises(DataError) as caught:
        record({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion")
    assert "messages" in (caught.value.problems[0].remedy or "")


def test_a_field_is_named_as_the_file_names_it() -> None:
    with pytest.raises(DataError) as caught:
        record({"chat": [TURNS[0], {"role": "assistant", "content": ""}]}, "messages", {"messages": "chat"})
    assert caught.value.problems[0].key == "chat[1].content"


def pair(values: dict[str, Any], source: str | None = None, target: str | None = None) -> Record:
    row_format: RowFormat = detect_format(list(values), TASKS["seq2seq_lm"])
    return to_record(Row(values, "a.jsonl:7"), row_format, {}, languages=LanguagePair(source, target), as_pair=True)


def labelled(**values: Any) -> Record:
    return to_record(Row(values, "a.jsonl:7"), "classification", {})


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        ("seq2seq_lm", ["translation"], "translation"),
        ("seq2seq_lm", ["source", "target"], "translation"),
        ("seq2seq_lm", ["prompt", "completion"], "prompt_completion"),
        ("seq2seq_lm", ["instruction", "output"], "alpaca"),
        ("seq_cls", ["idx", "text", "label"], "classification"),
        ("causal_lm", ["text", "label"], "text"),
    ],
)
def test_each_task_recognises_its_formats(task: TaskName, columns: list[str], expected: str) -> None:
    assert detect_format(columns, TASKS[task]) == expected


def test_rows_of_another_task_are_told_which() -> None:
    with pytest.raises(DataError, match="Rows with these columns fit task: seq_cls"):
        detect_format(["text", "label"], TASKS["seq2seq_lm"])
    with pytest.raises(DataError, match="takes no rows of format messages") as caught:
        check_format("messages", TASKS["seq_cls"])
    assert (caught.value.problems[0].key, caught.value.problems[0].remedy) == (
        "data.format",
        "It takes classification.",
    )


def test_what_rows_of_pairs_say() -> None:
    expected = Seq2SeqRecord("yes", "oui")
    assert pair({"translation": {"en": "yes", "fr": "oui", "de": None}}, "en", "fr") == expected
    assert pair({"translation": {"en": "yes", "fr": "oui"}}, "en_XX", "fr_XX") == expected
    assert pair({"source": "yes", "target": "oui"}) == expected
    assert pair({"prompt": "yes", "completion": "oui"}) == expected
    assert pair({"instruction": "Translate.", "input": "yes", "output": "oui"}) == Seq2SeqRecord(
        "Translate.\n\nyes", "oui"
    )


NESTED = {"translation": {"en": "yes", "fr": "oui"}}


def test_columns_name_what_lies_inside_a_column() -> None:
    """NLLB's codes are no keys of the rows: the texts are named, and win over the translation that they are in."""
    columns = {"source": "translation.fr", "target": "translation.en"}
    assert detect_format({"translation"}, TASKS["seq2seq_lm"], columns) == "translation"
    row = Row(NESTED, "a.jsonl:7")
    assert to_record(
        row, "translation", columns, languages=LanguagePair("eng_Latn", "fra_Latn"), as_pair=True
    ) == Seq2SeqRecord("oui", "yes")
    assert detect_format({"t.en", "t.fr"}, TASKS["seq2seq_lm"], {"source": "t.en", "target": "t.fr"}) == "translation"
    flat = Row({"t.en": "yes", "t.fr": "oui"}, "a.csv:2")
    assert to_record(flat, "translation", {"source": "t.en", "target": "t.fr"}, as_pair=True) == Seq2SeqRecord(
        "yes", "oui"
    )
    with pytest.raises(DataError, match=r"a.jsonl:7 translation.de: is missing"):
        to_record(
            row, "translation", columns | {"target": "translation.de"}, languages=LanguagePair("en", "fr"), as_pair=True
        )
    with pytest.raises(DataError, match="none of the formats"):
        detect_format(
            {"translation"}, TASKS["seq2seq_lm"], {"source": "texts.en", "target": "texts.fr", "translation": "x"}
        )


def test_a_translation_may_be_the_text_of_an_object() -> None:
    """A CSV file has no other way to keep one."""
    assert pair({"translation": json.dumps(NESTED["translation"])}, "en", "fr") == Seq2SeqRecord("yes", "oui")
    with pytest.raises(DataError, match="found text"):
        pair({"translation": "{'en': 'yes'}"}, "en", "fr")
    with pytest.raises(DataError, match="'en' twice"):
        pair({"translation": '{"en": "yes", "fr": "oui", "en": "no"}'}, "en", "fr")


def test_codes_that_no_row_has_are_told_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        pair(NESTED, "eng_Latn", "fra_Latn")
    assert "data.columns: {source: translation.en" in (caught.value.problems[0].remedy or "")


def test_what_labelled_rows_say() -> None:
    assert labelled(text="fine", label=" pos ") == ClassificationRecord("fine", None, "pos")
    assert labelled(text="fine", label=3) == ClassificationRecord("fine", None, 3)
    assert labelled(text="fine", label=False) == ClassificationRecord("fine", None, "false")
    assert labelled(text="a", text_pair="b", label=["only"]) == ClassificationRecord("a", "b", "only")


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"translation": {"en": "yes"}}, "translation", "has no text in fr (data.target_lang); it has en"),
        ({"translation": {"en": "yes", "fr": None}}, "translation", "has no text in fr"),
        ({"translation": {"en": "yes", "fr": " "}}, "translation.fr", "is empty"),
        ({"translation": {"en": "yes", "fr": ["oui"]}}, "translation.fr", "must be text; found a list"),
        ({"translation": {"en": "\ud800", "fr": "oui"}}, "translation.en", "lone surrogate"),
        ({"translation": "yes"}, "translation", "must be an object with a text for each language; found text"),
        ({"translation": None}, "translation", "found nothing (null)"),
        ({"source": "yes", "target": ""}, "target", "is empty"),
        ({"source": "yes", "target": None}, "target", "must be text; found nothing (null)"),
        ({"source": 7, "target": "oui"}, "source", "must be text; found a number"),
        ({"prompt": "yes", "completion": "\n"}, "completion", "is empty"),
    ],
)
def test_c46_a_bad_pair_is_named_with_its_place(values: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        pair(values, "en", "fr")
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("a.jsonl:7", field)
    assert said in problem.message


def test_languages_that_are_not_set_are_asked_for_by_key() -> None:
    with pytest.raises(DataError) as caught:
        pair({"translation": {"en": "yes", "fr": "oui"}}, "en")
    (problem,) = caught.value.problems
    assert problem.key == "data.target_lang"
    assert "en, fr" in problem.message


@pytest.mark.parametrize(
    ("values", "field", "said", "remedy"),
    [
        ({"text": "x", "label": 0.5}, "label", "is 0.5, and a class is text or a whole number", "regression"),
        ({"text": "x", "label": "4.5"}, "label", "is 4.5", "regression"),
        ({"text": "x", "label": ["a", "b"]}, "label", "has 2 labels, and a row belongs to one class", "Write one row"),
        ({"text": "x", "label": []}, "label", "is an empty list", None),
        ({"text": "x", "label": "-" + "7" * 4301}, "label", "is a number of 4,301 digits", "columns are shifted"),
        ({"text": "x", "label": None}, "label", "found nothing (null)", None),
        ({"text": "x", "label": ""}, "label", "is empty", None),
        ({"text": "x", "label": {"a": 1}}, "label", "found an object", None),
        ({"text": "x"}, "label", "is missing; the row has text", None),
        ({"text": "", "label": "a"}, "text", "is empty", None),
        ({"text": "x", "text_pair": 3, "label": "a"}, "text_pair", "must be text or absent; found a number", None),
    ],
)
def test_c46_a_bad_labelled_row_is_named_with_its_place(
    values: dict[str, Any], field: str, said: str, remedy: str | None
) -> None:
    with pytest.raises(DataError) as caught:
        labelled(**values)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("a.jsonl:7", field)
    assert said in problem.message
    assert (remedy or "") in (problem.remedy or "")


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({"source": "hello", "target": "bonjour"}, "hello"),
        ({"translation": {"en": "hello", "fr": "bonjour"}}, "hello"),
        ({"prompt": "hello", "source": "a book", "translation": 7}, "hello"),
    ],
)
def test_a_question_may_be_a_source(values: dict[str, object], asked: str) -> None:
    """Beside a prompt, `source` is a column like any other."""
    assert to_question(Row(values, "a.jsonl:7"), LanguagePair("en_XX")).messages == (Message("user", asked),)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"source": "hello", "translation": {}}, "it has source and translation"),
        ({"source": " "}, "a.jsonl:7 source: is empty"),
        ({"translation": {"de": "hallo"}}, "has no text in en_XX"),
        ({"translation": {"en": 7}}, "translation.en: must be text"),
        ({"translation": ["hello"]}, "a.jsonl:7 translation"),
    ],
)
def test_c46_a_source_that_cannot_be_asked_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        to_question(Row(values, "a.jsonl:7"), LanguagePair("en_XX"))


def test_an_answer_that_was_empty_may_stand_before_a_question_and_teaches_nothing() -> None:
    turns = [{"role": role, "content": said} for role, said in (("user", "a"), ("assistant", ""), ("user", "b"))]
    row = Row({"messages": turns}, "a.jsonl:7")
    assert to_question(row).messages[1] == Message("assistant", "")
    with pytest.raises(DataError, match=r"messages\[1\]\.content: is empty"):
        to_record(row, "messages", {})


def test_the_language_of_a_translation_must_be_said() -> None:
    with pytest.raises(DataError, match=r"data\.source_lang: is not set, and the rows have the languages en, fr"):
        to_question(Row({"translation": {"en": "hello", "fr": "bonjour"}}, "a.jsonl:7"))


TURNS_OF_SHAREGPT = [{"from": "human", "value": "Rain?"}, {"from": "gpt", "value": "Yes."}]


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_a_system_prompt_in_a_column_of_its_own_opens_the_conversation(column: str) -> None:
    turns: list[dict[str, str]] = TURNS_OF_SHAREGPT if column == "conversations" else [
        {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes."}
    ]  # fmt: skip
    row_format = "sharegpt" if column == "conversations" else "messages"
    found = record({column: turns, "system": "Be brief."}, row_format)
    assert isinstance(found, Conversation)
    assert found.messages == (Message("system", "Be brief."), Message("user", "Rain?"), Message("assistant", "Yes."))
    for empty in ("", None):
        assert record({column: turns, "system": empty}, row_format) == Conversation(found.messages[1:])
    role, content = ("from", "value") if column == "conversations" else ("role", "content")
    twice = [{role: "system", content: "Be brief."}, *turns]
    assert record({column: twice, "system": "Be brief."}, row_format) == found
    with pytest.raises(DataError) as caught:
        record({column: twice, "system": "Be long."}, row_format)
    assert (caught.value.problems[0].where, caught.value.problems[0].key) == ("a.jsonl:7", "system")


def test_calls_of_sharegpt_are_calls_of_tools() -> None:
    calls = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    turns = [
        TURNS_OF_SHAREGPT[0],
        {"from": "function_call", "value": calls},
        {"from": "observation", "value": "rain"},
        TURNS_OF_SHAREGPT[1],
    ]
    tool = {"name": "weather", "parameters": {}}
    found = record({"conversations": turns, "tools": json.dumps([tool])}, "sharegpt")
    assert isinstance(found, Conversation)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    assert found.messages[1] == Message("assistant", "", more={"tool_calls": [call]})
    assert found.messages[2] == Message("tool", "rain")
    assert found.tools == ({"type": "function", "function": tool},)
    both = record({"conversations": [turns[0], {**turns[1], "value": f"[{calls}, {calls}]"}, *turns[2:]]}, "sharegpt")
    assert isinstance(both, Conversation)
    assert both.messages[1].more == {"tool_calls": [call, call]}


@pytest.mark.parametrize("value", ["weather()", "{}", "[]", '[{"arguments": {}}]', "3"])
def test_a_call_of_sharegpt_that_is_none_is_named_with_its_place(value: str) -> None:
    with pytest.raises(DataError) as caught:
        record({"conversations": [TURNS_OF_SHAREGPT[0], {"from": "function_call", "value": value}]}, "sharegpt")
    assert caught.value.problems[0].key == "conversations[1].value"


@pytest.mark.parametrize(
    ("columns", "told", "remedy"),
    [
        (["prompt", "chosen", "rejected"], "chosen and rejected are of preference pairs", "output: chosen"),
        (["chosen", "rejected"], "chosen and rejected are of preference pairs", "messages: chosen"),
        (["messages", "rejected_response"], "rejected_response is of preference pairs", "data.format: messages"),
        (["prompt", "completion", "label"], "answers that are good or bad", "output: completion"),
    ],
)
def test_preference_rows_are_told_to_be_none_that_are_trained(columns: list[str], told: str, remedy: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        detect_format(columns, TASKS["causal_lm"])
    assert remedy in str(caught.value.problems[0].remedy)


def test_preference_rows_are_read_as_the_config_says() -> None:
    assert (
        detect_format(["prompt", "chosen", "rejected"], TASKS["causal_lm"], {"completion": "chosen"})
        == "prompt_completion"
    )
    assert detect_format(["chosen", "rejected"], TASKS["causal_lm"], {"messages": "chosen"}) == "messages"
    kept = {"completion": "completion"}
    assert detect_format(["prompt", "completion", "label"], TASKS["causal_lm"], kept) == "prompt_completion"
    assert detect_format(["text", "completion", "label"], TASKS["seq_cls"]) == "classification"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"messages": [], "images": ["a.png"]}, "images"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
         "messages[0].content[1]"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
    ],
)  # fmt: skip
def test_images_are_told_to_be_none_that_are_trained(values: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError) as caught:
        record(values, "messages")
    assert caught.value.problems[0].key == field


def test_turns_may_be_json_text_as_csv_files_keep_them() -> None:
    turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes."}]
    assert record({"messages": json.dumps(turns)}, "messages") == record({"messages": turns}, "messages")
    with pytest.raises(DataError, match="must be a list of turns; found text"):
        record({"messages": "[Rain?"}, "messages")


def test_parts_that_are_all_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "Ra"}, {"type": "text", "text": "in?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]
    found = record({"messages": turns, "images": []}, "messages")
    assert isinstance(found, Conversation)
    assert found.messages[0] == Message("user", "Rain?")


@pytest.mark.parametrize(
    ("columns", "task", "said"),
    [
        (["Text", "LABEL"], "seq_cls", "text is 'Text', label is 'LABEL'"),
        (["Prompt", "completion"], "causal_lm", "prompt is 'Prompt'"),
        (["prompt ", " completion"], "causal_lm", "prompt is 'prompt ', completion is ' completion'"),
        (["Frage", "Antwort"], "causal_lm", None),
    ],
)
def test_columns_that_differ_in_case_or_blanks_alone_are_suggested(
    columns: list[str], task: TaskName, said: str | None
) -> None:
    with pytest.raises(DataError) as refused:
        detect_format(columns, TASKS[task])
    remedy = refused.value.problems[0].remedy or ""
    assert ("differ in case or blanks alone" in remedy) == (said is not None)
    assert (said or "") in remedy


def test_a_column_that_is_named_and_not_there_is_told() -> None:
    with pytest.raises(DataError) as refused:
        detect_format(
            ["prompt", "completion"], TASKS["causal_lm"], {"prompt": "question", "completion": "completion.a"}
        )
    remedy = refused.value.problems[0].remedy or ""
    assert ("prompt is 'question'" in remedy, "completion.a" in remedy) == (True, False)

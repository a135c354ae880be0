"""Rows with a better and a worse answer, in the forms that files have; what does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest

from loraft.errors import DataError
from loraft.rows.fields import unread_columns
from loraft.rows.formats import Conversation, PreferencePair, PromptCompletion, UnpairedAnswer
from loraft.rows.preferences import to_pair, to_unpaired
from loraft.rows.row import Row
from loraft.tasks import TASKS, detect_format


def turns(*said: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[number % 2], "content": each} for number, each in enumerate(said)]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def read(**values: Any) -> PreferencePair:
    return to_pair(Row(values, "rows.jsonl:3"), {})


def shown(side: Conversation | PromptCompletion) -> list[str]:
    """What is said, the turns that are compared in brackets."""
    assert isinstance(side, Conversation)
    return [f"[{turn.content}]" if turn.train else turn.content for turn in side.messages]


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": turns("q"), "chosen": answer("good"), "rejected": answer("bad")},
        {"prompt": "q", "chosen": answer("good"), "rejected": answer("bad")},
        {"prompt": "q", "chosen": turns("q", "good"), "rejected": turns("q", "bad")},
        {"chosen": turns("q", "good"), "rejected": turns("q", "bad")},
        {"messages": turns("q", "good"), "rejected_response": "bad"},
        {"messages": turns("q", "good"), "rejected_response": answer("bad")},
        {"instruction": "q", "chosen": "good", "rejected": "bad"},
        {"instruction": "q", "chosen": answer("good")[0], "rejected": answer("bad")[0]},
    ],
    ids=[
        "turns",
        "a prompt of text",
        "whole beside a prompt",
        "within",
        "ms-swift",
        "ms-swift with turns",
        "an instruction",
        "one turn by itself",
    ],
)
def test_every_form_of_two_conversations_says_the_same(values: dict[str, Any]) -> None:
    pair = read(**values)
    assert (shown(pair.chosen), shown(pair.rejected)) == (["q", "[good]"], ["q", "[bad]"])
    assert detect_format(values, TASKS["preference"]) == "preferences"


def test_an_instruction_has_its_input_and_a_prompt_comes_first_unless_names_say_otherwise() -> None:
    pair = read(system="be brief", instruction="add", input="1 2", chosen="3", rejected="4")
    assert shown(pair.chosen) == ["be brief", "add\n\n1 2", "[3]"]
    row = Row({"prompt": "q", "instruction": "i", "chosen": "3", "rejected": "4"}, "rows.jsonl:3")
    assert to_pair(row, {}).chosen == PromptCompletion("q", "3")
    assert shown(to_pair(row, {"instruction": "prompt"}).chosen) == ["q", "[3]"]
    named = Row({"input": "q", "chosen": "3", "rejected": "4"}, "rows.jsonl:3")
    assert shown(to_pair(named, {"instruction": "input"}).chosen) == ["q", "[3]"], "the column is not its input too"
    alone = to_unpaired(Row({"instruction": "q", "completion": "a", "label": False}, "rows.jsonl:3"), {})
    assert isinstance(alone.answer, Conversation)
    assert (shown(alone.answer), alone.desirable) == (["q", "[a]"], False)


def test_null_is_absent_and_a_prompt_of_turns_takes_answers_of_text() -> None:
    whole = {"chosen": turns("q", "good"), "rejected": turns("q", "bad")}
    assert shown(read(**whole, instruction=None, prompt=None).chosen) == ["q", "[good]"]
    assert shown(read(prompt=None, instruction="q", chosen="good", rejected="bad").chosen) == ["q", "[good]"]
    assert shown(read(prompt=turns("q"), chosen="good", rejected="bad").rejected) == ["q", "[bad]"]
    row = Row({"completion": turns("q", "a"), "label": True}, "rows.jsonl:3")
    answered = to_unpaired(row, {"messages": "completion"}).answer
    assert isinstance(answered, Conversation)
    assert shown(answered) == ["q", "[a]"]


@pytest.mark.parametrize("beside", [{"system": "s"}, {"tools": [{"name": "t"}]}])
def test_what_a_template_would_print_beside_text_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="chat template") as caught:
        read(prompt="q", chosen="good", rejected="bad", **beside)
    assert caught.value.problems[0].key == next(iter(beside))
    row = Row({"prompt": "q", "completion": "a", "label": True, **beside}, "rows.jsonl:3")
    with pytest.raises(DataError, match="instruction: prompt"):
        to_unpaired(row, {})
    with pytest.raises(DataError, match="instruction: asked"):
        to_pair(Row({"asked": "q", "chosen": "3", "rejected": "4", **beside}, "rows.jsonl:3"), {"prompt": "asked"})


def test_columns_beside_a_prompt_are_read_only_where_they_are_named() -> None:
    columns = ["prompt", "instruction", "input", "foo", "chosen", "rejected"]
    assert unread_columns(columns, "preferences", {}) == ("instruction", "input", "foo")
    assert unread_columns(columns, "preferences", {"instruction": "prompt"}) == ("instruction", "foo")
    assert unread_columns(["input", "chosen", "rejected"], "preferences", {}) == ("input",)


def test_of_columns_that_one_format_may_have_in_two_ways_those_of_the_other_way_are_not_read() -> None:
    compared = ["chosen", "rejected", "messages"]
    assert unread_columns(compared, "preferences", {}) == ("messages",)
    assert unread_columns(compared, "preferences", {"prompt": "messages"}) == ()
    assert unread_columns(["messages", "rejected_response"], "preferences", {}) == ()
    translated = ["translation", "source", "target"]
    assert unread_columns(translated, "translation", {}) == ("source", "target")
    assert unread_columns(translated, "translation", {"source": "source", "target": "target"}) == ("translation",)
    labelled = ["messages", "label", "prompt", "completion"]
    assert unread_columns(labelled, "unpaired", {}) == ("messages",)
    assert unread_columns(labelled, "unpaired", {"messages": "messages"}) == ("prompt", "completion")


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        (["instruction", "chosen", "rejected"], "{instruction: instruction, output: chosen}"),
        (["messages", "rejected_response"], "Write task: seq2seq_preference."),
        (["instruction", "completion", "label"], "{instruction: instruction, output: completion}"),
    ],
)
def test_a_remedy_names_columns_that_the_task_and_the_file_have(columns: list[str], remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        detect_format(columns, TASKS["seq2seq_lm"])
    assert remedy in str(caught.value.problems[0].remedy)


def test_a_classifier_is_offered_no_columns_that_it_cannot_read() -> None:
    with pytest.raises(DataError) as caught:
        detect_format(["prompt", "chosen", "rejected"], TASKS["seq_cls"])
    assert caught.value.problems[0].remedy == "Write task: preference."


def test_earlier_answers_and_a_system_prompt_stand_before_and_are_not_compared() -> None:
    pair = read(system="be brief", chosen=turns("a", "b", "c", "good"), rejected=turns("a", "b", "c", "bad"))
    assert shown(pair.chosen) == ["be brief", "a", "b", "c", "[good]"]
    assert shown(pair.rejected) == ["be brief", "a", "b", "c", "[bad]"]


def test_two_texts_have_their_prompt_beside_them_or_as_what_both_begin_with() -> None:
    beside = read(prompt="1 + 1 =", chosen=" 2", rejected=" 3")
    assert beside == PreferencePair(PromptCompletion("1 + 1 =", " 2"), PromptCompletion("1 + 1 =", " 3"))
    within = read(chosen="Human: hi\n\nAssistant: Hello", rejected="Human: hi\n\nAssistant: Help")
    prompt = "Human: hi\n\nAssistant:"
    assert within == PreferencePair(PromptCompletion(prompt, " Hello"), PromptCompletion(prompt, " Help"))


def test_the_same_answer_twice_is_compared_and_told_later() -> None:
    pair = read(chosen=turns("q", "a"), rejected=turns("q", "a"))
    assert shown(pair.chosen) == shown(pair.rejected) == ["q", "[a]"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": answer("b")}, "rejected"),
        ({"prompt": "q", "chosen": "a"}, "rejected"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": 3, "chosen": answer("a"), "rejected": answer("b")}, "prompt"),
        ({"prompt": "q", "chosen": [], "rejected": []}, "chosen"),
        ({"prompt": "q", "chosen": 7, "rejected": 8}, "chosen"),
        ({"chosen": answer("a"), "rejected": answer("b")}, "chosen"),
        ({"chosen": turns("q", "a"), "rejected": turns("q", "a", "more", "b")}, "chosen"),
        ({"chosen": turns("q"), "rejected": turns("q", "b")}, "chosen"),
        ({"chosen": "the same", "rejected": "the same"}, "rejected"),
        ({"chosen": "abc def", "rejected": "abc"}, "rejected"),
        ({"chosen": "yes", "rejected": "no"}, "prompt"),
        ({"prompt": None, "chosen": "yes it is", "rejected": "yesterday"}, "prompt"),
        ({"chosen": turns("q", "a"), "rejected": turns("other", "b")}, "chosen[0]"),
        ({"chosen": turns("q", "a", "so", "b"), "rejected": turns("q", "a", "but", "c")}, "chosen[2]"),
        ({"messages": turns("q"), "rejected_response": "b"}, "messages[0]"),
        ({"messages": turns("q", "a"), "rejected_response": " "}, "rejected_response"),
        ({"messages": turns("q", "a"), "rejected_response": [{"role": "user", "content": "x"}]}, "rejected_response"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(DataError) as caught:
        read(**values)
    problem = caught.value.problems[0]
    assert (problem.where, problem.key) == ("rows.jsonl:3", key)


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": turns("q"), "completion": answer("a"), "label": True},
        {"prompt": "q", "completion": answer("a"), "label": "True"},
        {"prompt": turns("q"), "completion": "a", "label": 1},
        {"messages": turns("q", "a"), "label": "true"},
    ],
    ids=["turns", "a prompt of text", "an answer of text", "messages"],
)
def test_every_form_of_an_answer_with_a_label_says_the_same(values: dict[str, Any]) -> None:
    record = to_unpaired(Row(values, "rows.jsonl:3"), {})
    assert record.desirable
    assert shown(record.answer) == ["q", "[a]"]
    assert detect_format(values, TASKS["preference"]) == "unpaired"


def test_an_answer_of_text_stays_text_and_earlier_answers_do_not_count() -> None:
    plain = to_unpaired(Row({"ask": "1 + 1 =", "completion": " 3", "kto_tag": False}, "rows.jsonl:3"), {
        "prompt": "ask", "label": "kto_tag",
    })  # fmt: skip
    assert plain == UnpairedAnswer(PromptCompletion("1 + 1 =", " 3"), desirable=False)
    values = {"messages": turns("a", "b", "c", "d"), "system": "be brief", "label": "0"}
    assert shown(to_unpaired(Row(values, "rows.jsonl:3"), {}).answer) == ["be brief", "a", "b", "c", "[d]"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"prompt": "q", "completion": "a", "label": "good"}, "label"),
        ({"prompt": "q", "completion": "a", "label": 2}, "label"),
        ({"prompt": "q", "completion": "a", "label": None}, "label"),
        ({"prompt": "q", "completion": "a", "label": [True]}, "label"),
        ({"prompt": "q", "completion": "a"}, "label"),
        ({"prompt": "q", "completion": " ", "label": True}, "completion"),
        ({"prompt": "q", "completion": [], "label": True}, "completion"),
        ({"prompt": "q", "completion": 7, "label": True}, "completion"),
        ({"prompt": "q", "completion": turns("q", "a"), "label": True}, "completion[0].role"),
        ({"prompt": "", "completion": "a", "label": True}, "prompt"),
        ({"completion": answer("a"), "label": True}, "completion"),
        ({"messages": turns("q", "a", "b"), "label": True}, "messages[2]"),
        ({"messages": answer("a"), "label": True}, "messages"),
    ],
)
def test_what_is_no_answer_with_a_label_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(DataError) as caught:
        to_unpaired(Row(values, "rows.jsonl:3"), {})
    problem = caught.value.problems[0]
    assert (problem.where, problem.key) == ("rows.jsonl:3", key)

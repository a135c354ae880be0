"""What a row of a decoder asks, and the tokens that its answer follows."""

from __future__ import annotations

from typing import Literal

import pytest

from loraft.rows.formats import THOUGHTS, Conversation, Message, PreferencePair, PromptCompletion
from loraft.tasks import TASKS
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from tests.tokenization.chats import MISTRAL, example_of, metaspace_tokenizer

TASK = TASKS["causal_lm"]
CALL = Message("assistant", "", True, {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
ASKED = (Message("user", "q"),)


@pytest.mark.parametrize("train_on", ["completions", "all"])
def test_an_answer_follows_its_whole_prompt_whatever_is_learned(train_on: Literal["completions", "all"]) -> None:
    """The token that a tokenizer puts before each text is not learned, where all that follows is."""
    tokenizer = metaspace_tokenizer("first", MISTRAL)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer, conversations=False, train_on=train_on, plain=True)
    record = PromptCompletion("which one", " this")
    example, asked = example_of(renderer, record, "here"), TASK.reference(record, ())
    assert example.input_ids[0] == tokenizer.bos_token_id
    assert asked is not None
    ids = TASK.prompt_ids(example, asked, renderer)
    assert tokenizer.decode(ids, skip_special_tokens=True) == record.prompt
    assert example.input_ids[: len(ids)] == ids


def test_a_turn_that_is_not_to_be_learned_is_no_right_answer() -> None:
    """OpenAI's weight of 0, say, which an answer has that is not to be given."""
    good, bad = Message("assistant", "yes"), Message("assistant", "no", False)
    found = TASK.reference(Conversation((*ASKED, good, *ASKED, bad)), ())
    assert found is not None
    assert (found.asked, found.reference) == (ASKED, "yes")
    assert TASK.reference(Conversation((*ASKED, bad)), ()) is None


@pytest.mark.parametrize("key", THOUGHTS)
def test_nor_has_a_turn_with_thoughts_beside_its_content(key: str) -> None:
    """A model writes them first, and what it writes is never the content alone."""
    thought = Message("assistant", "yes", None, {key: "so it is"})
    assert TASK.reference(Conversation((*ASKED, thought)), ()) is None


def test_a_turn_that_calls_tools_has_no_right_answer_in_words() -> None:
    """Its content is empty, and an answer that says nothing would be right."""
    answered = (*ASKED, CALL, Message("tool", "1"), Message("assistant", "one", True))
    assert TASK.reference(Conversation((*ASKED, CALL)), ()) is None
    found = TASK.reference(Conversation(answered), ())
    assert found is not None
    assert (found.asked, found.reference) == (answered[:-1], "one")
    rejected = Conversation((*ASKED, Message("assistant", "no", True)))
    compared = TASKS["preference"].reference
    assert compared(PreferencePair(Conversation(answered), rejected), ()) is None
    found = compared(PreferencePair(rejected, Conversation(answered)), ())
    assert found is not None
    assert (found.asked, found.reference) == (ASKED, "no")

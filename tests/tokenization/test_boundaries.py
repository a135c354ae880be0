"""Training begins with the tokens that generation feeds, whatever the tokenizer would join across the border."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from loraft.rows.formats import Conversation, Message, PromptCompletion
from loraft.tokenization.boundaries import BorderedText, TextEncoder
from loraft.tokenization.causal_lm_rows import SPACED, CausalLMRenderer
from loraft.tokenization.examples import IGNORED
from tests.tokenization.chats import (
    CHATML,
    CHATS,
    HEADER_ENDS_IN_SPACE,
    ONE_TURN,
    THREE_TURNS,
    example_of,
    metaspace_tokenizer,
    qwen_tokenizer,
    tokenizer_for,
    tokenizer_of,
)

ANSWERS = ["ok yes", " ok", "\nok", "\n\nok", "1", "", "</think>", "日本", "🙂", "'s", "a"]
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level, header ends in a space": lambda: tokenizer_of(("</s>",), eos="</s>", template=HEADER_ENDS_IN_SPACE),
    "byte-level with trimmed offsets": lambda: tokenizer_of(
        ("</s>",), eos="</s>", template=HEADER_ENDS_IN_SPACE, trim_offsets=True
    ),
    "qwen": lambda: qwen_tokenizer(CHATML),
    "qwen, header ends in a space": lambda: qwen_tokenizer(HEADER_ENDS_IN_SPACE),
    "metaspace always": lambda: metaspace_tokenizer("always", HEADER_ENDS_IN_SPACE),
    "metaspace first": lambda: metaspace_tokenizer("first", HEADER_ENDS_IN_SPACE),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_chat_begins_with_the_prompt_that_transformers_makes(name: str, answer: str) -> None:
    tokenizer = TOKENIZERS[name]()
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    asked = Message("user", "What is two?")
    prompt = tokenizer.apply_chat_template([vars(asked)], add_generation_prompt=True, tokenize=True)["input_ids"]
    assert renderer.prompt_ids([asked]) == prompt
    if not answer:
        return
    example = example_of(renderer, Conversation((asked, Message("assistant", answer))), "here")
    assert example.input_ids[: len(prompt)] == prompt
    first = next(at for at, label in enumerate(example.labels) if label != IGNORED)
    assert first == len(prompt)
    trained = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode([*prompt, *trained]) == tokenizer.decode(prompt) + answer + tokenizer.eos_token


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_turn_of_a_chat_begins_with_its_own_prompt(name: str) -> None:
    renderer = CausalLMRenderer.for_tokenizer(TOKENIZERS[name]())
    example = example_of(renderer, Conversation(THREE_TURNS), "here")
    for turn in (1, 3, 5):
        prompt = renderer.prompt_ids(THREE_TURNS[:turn])
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[len(prompt)] != IGNORED
        assert example.labels[len(prompt) - 1] == IGNORED


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "completion"), [("a", "b"), ("a b", "ok yes"), ("two ", "and"), ("two\n", "\nand"), ("two", " and")]
)
def test_a_completion_begins_with_the_tokens_of_its_prompt(name: str, prompt: str, completion: str) -> None:
    tokenizer = TOKENIZERS[name]()
    renderer = CausalLMRenderer.for_tokenizer(tokenizer, conversations=False)
    before = tokenizer(prompt)["input_ids"]
    example = example_of(renderer, PromptCompletion(prompt, completion), "here")
    assert example.input_ids[: len(before)] == before
    assert example.labels == [IGNORED] * len(before) + example.input_ids[len(before) :]
    assert tokenizer.decode(example.input_ids, skip_special_tokens=True) == prompt + completion


@pytest.mark.parametrize("name", CHATS)
def test_chats_that_need_no_cut_are_tokenized_as_one_text(name: str) -> None:
    tokenizer = tokenizer_for(CHATS[name])
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    for messages in (ONE_TURN, THREE_TURNS):
        whole = tokenizer.apply_chat_template([vars(message) for message in messages], tokenize=True)["input_ids"]
        assert example_of(renderer, Conversation(messages), "here").input_ids == whole


def test_a_text_is_cut_at_those_borders_alone_where_tokens_would_join() -> None:
    tokenizer = tokenizer_of()
    assert tokenizer.tokenize("two and two") == ["two", "Ġand", "Ġtwo"]
    (encoded,) = TextEncoder(tokenizer).encode([BorderedText("two and two", (3, 8))])
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["two", "Ġand", "Ġ", "two"]
    assert encoded.starts == {0: 0, 3: 1, 8: 3}
    assert [tuple(span) for span in encoded.offsets] == [(0, 3), (3, 7), (7, 8), (8, 11)]


def test_added_tokens_are_listed_for_borders_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server makes an encoder for each text that it goes on with, and some vocabularies have thousands."""
    tokenizer, listed = tokenizer_of(), list[None]()
    there = tokenizer.get_added_vocab()
    monkeypatch.setattr(tokenizer, "get_added_vocab", lambda: listed.append(None) or there)
    for borders in ((), (8,)):
        TextEncoder(tokenizer).encode([BorderedText("two and two", borders)])
    assert len(listed) == 1


def test_a_tokenizer_that_cannot_do_without_a_space_is_said_by_row() -> None:
    """A prefix space before every piece of text, and no character that keeps a word apart from it."""
    tokenizer = metaspace_tokenizer("always", HEADER_ENDS_IN_SPACE)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    renderer._encoder.__dict__["_guards"] = ()
    rendered = renderer.render(PromptCompletion("two ", "and"))
    renderer.examples([rendered], ["here"])
    assert renderer.findings(rendered) == (SPACED,)

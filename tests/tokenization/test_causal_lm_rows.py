"""The loss mask, decoded and compared with what a person would mark."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
from tokenizers.processors import TemplateProcessing

from loraft.errors import DataError
from loraft.rows.formats import Conversation, Message, PromptCompletion, Text
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.examples import IGNORED, Example
from tests.tiny import tiny_tokenizer
from tests.tokenization.chats import example_of
from tests.tokenization.template_texts import TEMPLATES, Chat, chat_tokenizer


def conversation(*turns: str) -> Conversation:
    """Turns of user and assistant, by turns."""
    return Conversation(tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns)))


def trained(renderer: CausalLMRenderer, example: Example) -> list[str]:
    """The trained stretches of a row, as text."""
    pairs = zip(example.input_ids, example.labels, strict=True)
    return [
        renderer.tokenizer.decode([token for token, _ in run])
        for kept, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED)
        if kept
    ]


def renderer_of(chat: Chat, **options: object) -> CausalLMRenderer:
    return CausalLMRenderer.for_tokenizer(chat_tokenizer(chat), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("chat", TEMPLATES.values(), ids=TEMPLATES)
def test_c3_c1_the_answers_are_trained_with_their_end_and_without_their_header(chat: Chat) -> None:
    """C3 and C1: one and three turns; the end mark is in though it is the padding token, header and newline are out."""
    renderer = renderer_of(chat)
    for count in (1, 3):
        turns = [text for number in range(count) for text in (f"question {number}", f"answer {number} < 3!")]
        example = example_of(renderer, conversation(*turns), "a:1")
        expected = [chat.trained.replace("A", f"answer {number} < 3!") for number in range(count)]
        assert trained(renderer, example) == expected
        ends = [i for i, label in enumerate(example.labels) if label != IGNORED and label in renderer.stop_ids]
        assert len(ends) == count


@pytest.mark.parametrize("chat", TEMPLATES.values(), ids=TEMPLATES)
def test_the_ids_are_those_of_the_rendered_text(chat: Chat) -> None:
    renderer = renderer_of(chat)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    expected = renderer.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert example_of(renderer, conversation("hello", "world"), "a:1").input_ids == list(expected)


@pytest.mark.parametrize("chat", TEMPLATES.values(), ids=TEMPLATES)
def test_c7_a_prompt_is_what_was_trained_up_to_the_answer(chat: Chat) -> None:
    """C7: generation reads exactly the tokens that stood before the answer in training."""
    renderer = renderer_of(chat)
    example = example_of(renderer, conversation("hello there", "answer"), "a:1")
    first = next(i for i, label in enumerate(example.labels) if label != IGNORED)
    assert renderer.prompt_ids([Message("user", "hello there")]) == example.input_ids[:first]


@pytest.mark.parametrize("chat", TEMPLATES.values(), ids=TEMPLATES)
def test_c8_the_end_of_turn_and_the_end_of_text_are_stop_ids(chat: Chat) -> None:
    """C8: Gemma's end of turn is not its end of text, and both end an answer."""
    renderer = renderer_of(chat)
    end = renderer.tokenizer.convert_tokens_to_ids(chat.trained.strip()[1:])
    assert set(renderer.stop_ids) == {end, renderer.tokenizer.eos_token_id}


@pytest.mark.parametrize("name", ["llama-3", "mistral", "gemma"])
def test_c2_the_first_token_stands_once(name: str) -> None:
    """C2: the template prints BOS, and the tokenizer would add another."""
    chat = TEMPLATES[name]
    tokenizer = chat_tokenizer(chat)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{chat.bos} $A", special_tokens=[(chat.bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    for ids in (
        example_of(renderer, conversation("a", "b"), "a:1").input_ids,
        renderer.prompt_ids([Message("user", "a")]),
    ):
        assert ids.count(tokenizer.bos_token_id) == 1


def test_train_on_last_and_all() -> None:
    turns = conversation("one", "two", "three", "four")
    last = renderer_of(TEMPLATES["chatml"], train_on="last")
    assert trained(last, example_of(last, turns, "a:1")) == ["four<|im_end|>"]
    whole = renderer_of(TEMPLATES["chatml"], train_on="all")
    example = example_of(whole, turns, "a:1")
    assert example.labels == example.input_ids


def test_a_turn_may_say_for_itself_whether_it_is_trained() -> None:
    renderer = renderer_of(TEMPLATES["chatml"])
    turns = list(conversation("one", "two", "three", "four").messages)
    turns[1] = Message("assistant", "two", train=False)
    assert trained(renderer, example_of(renderer, Conversation(tuple(turns)), "a:1")) == ["four<|im_end|>"]


def test_an_answer_that_repeats_the_question_is_found_where_it_stands() -> None:
    renderer = renderer_of(TEMPLATES["chatml"])
    example = example_of(renderer, conversation("assistant", "assistant", "assistant", "user"), "a:1")
    assert trained(renderer, example) == ["assistant<|im_end|>", "user<|im_end|>"]


@pytest.mark.slow
def test_c5_prompt_and_completion_are_tokenized_in_one_piece_unless_they_would_merge() -> None:
    """C5: of 10,000 rows each begins with the tokens that generation feeds, and is one text wherever that is so."""
    tokenizer = tiny_tokenizer()
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    generator = random.Random(0)
    alphabet = "the order is late. äß 漢字 😀 \n\t()"
    records = [
        PromptCompletion(
            "".join(generator.choices(alphabet, k=generator.randint(1, 20))),
            "".join(generator.choices(alphabet, k=generator.randint(1, 20))),
        )
        for _ in range(10_000)
    ]
    examples = renderer.examples([renderer.render(record) for record in records], ["a:1"] * len(records))
    joined = tokenizer([r.prompt + r.completion for r in records])["input_ids"]
    prompts = tokenizer([r.prompt for r in records])["input_ids"]
    completions = tokenizer([r.completion for r in records])["input_ids"]
    merged = 0
    for example, ids, prompt, completion in zip(examples, joined, prompts, completions, strict=True):
        merges = ids[: len(prompt)] != prompt
        merged += merges
        assert example.input_ids == [*(prompt + completion if merges else ids), tokenizer.eos_token_id]
        assert example.labels == [IGNORED] * len(prompt) + example.input_ids[len(prompt) :]
    assert 100 < merged < 5000  # both kinds are among them


def test_plain_text_is_trained_whole_and_ends() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tiny_tokenizer())
    example = example_of(renderer, Text("the order is late"), "a:1")
    assert example.labels == example.input_ids
    assert example.input_ids[-1] == renderer.tokenizer.eos_token_id


def test_a_tokenizer_without_a_template_gets_one_and_it_is_said() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    assert any("chatml is used" in note for note in renderer.notes)
    assert trained(renderer, example_of(renderer, conversation("a", "b"), "a:1")) == ["b<|im_end|>"]


def test_a_template_whose_end_mark_is_no_token_ends_answers_with_the_end_of_text() -> None:
    tokenizer = chat_tokenizer(TEMPLATES["zephyr"])
    alpaca = CausalLMRenderer.for_tokenizer(tokenizer, chat_template="alpaca")
    # The tiny tokenizer knows <|im_end|>; alpaca takes it, as chatml does.
    example = example_of(alpaca, conversation("do it", "done"), "a:1")
    assert trained(alpaca, example)[0].startswith("done")
    assert example.trained >= 2


def test_a_template_from_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATES["chatml"].template.replace("user", "user"))
    renderer = CausalLMRenderer.for_tokenizer(tiny_tokenizer(), chat_template=str(path))
    assert renderer.chat_template == path.read_text()
    with pytest.raises(DataError, match="cannot be read"):
        CausalLMRenderer.for_tokenizer(tiny_tokenizer(), chat_template=str(tmp_path / "absent.jinja"))


def test_a_template_that_cannot_be_used_is_told_of_and_refuses_conversations_alone() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ functions.x }}{% endfor %}"
    renderer = CausalLMRenderer.for_tokenizer(tokenizer, conversations=False, plain=True)
    assert trained(renderer, example_of(renderer, PromptCompletion("the order", " is late"), "a:1"))
    assert renderer.template is None
    (note,) = renderer.notes
    assert "'functions' is undefined" in note
    for conversing in (lambda: CausalLMRenderer.for_tokenizer(tokenizer), renderer.conversing):
        with pytest.raises(DataError, match="'functions' is undefined"):
            conversing()


def test_a_template_that_refuses_a_row_is_quoted() -> None:
    renderer = renderer_of(TEMPLATES["gemma"])
    record = Conversation((Message("system", "be brief"), *conversation("a", "b").messages))
    with pytest.raises(DataError, match="System role not supported"):
        example_of(renderer, record, "a:1")


def test_c3_a_template_that_hides_earlier_turns_is_refused_rather_than_guessed() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages[-2:] %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(DataError, match="leaves out what the user says"):
        example_of(CausalLMRenderer.for_tokenizer(tokenizer), conversation("a", "b", "c", "d"), "a:1")

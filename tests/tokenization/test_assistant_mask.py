"""Where the answers stand in what a template prints, and which tokens are trained for it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from random import Random

import pytest

from loraft.errors import DataError
from loraft.rows.formats import Conversation, Message, PromptCompletion, Text
from loraft.tokenization.assistant_mask import ChatTemplate
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.examples import IGNORED, Example
from tests.tokenization.chats import (
    CHATS,
    IM,
    MISTRAL_WITH_SYSTEM,
    ONE_TURN,
    THREE_TURNS,
    Chat,
    example_of,
    tokenizer_for,
    tokenizer_of,
)

MIXED = ["two and", " ", "  ", "\n", "é", "日本", "🙂", "a", "The user", "said:", "\n\n", "\t", "x9", "four."]


def trained_parts(renderer: CausalLMRenderer, example: Example) -> list[str]:
    """The text of each unbroken stretch of trained tokens."""
    pairs = zip(example.input_ids, example.labels, strict=True)
    assert all(label in (token, IGNORED) for token, label in zip(example.input_ids, example.labels, strict=True))
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return [renderer.tokenizer.decode([token for token, _ in run]) for trained, run in runs if trained]


def parts_of(chat: Chat, messages: tuple[Message, ...], **options: str) -> list[str]:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(chat), **options)
    return trained_parts(renderer, example_of(renderer, Conversation(messages), "here"))


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("messages", [ONE_TURN, THREE_TURNS], ids=["one turn", "three turns"])
def test_c3_answers_with_their_end_and_nothing_else_are_trained(name: str, messages: tuple[Message, ...]) -> None:
    chat = CHATS[name]
    answers = [message.content for message in messages if message.role == "assistant"]
    expected = [chat.answer.format(answer) for answer in answers]
    expected[-1] = (chat.last_answer or chat.answer).format(answers[-1])
    assert parts_of(chat, messages) == expected


@pytest.mark.parametrize("name", CHATS)
def test_c1_the_end_of_turn_is_trained_though_it_is_the_padding_token(name: str) -> None:
    chat = CHATS[name]
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(chat))
    example = example_of(renderer, Conversation(THREE_TURNS), "here")
    end = renderer.tokenizer.convert_tokens_to_ids(chat.stops[0])
    assert example.labels.count(end) == 3
    assert renderer.tokenizer.pad_token_id == renderer.tokenizer.eos_token_id


@pytest.mark.parametrize("name", CHATS)
def test_c2_bos_stands_once_at_most(name: str) -> None:
    chat = CHATS[name]
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(chat))
    ids = example_of(renderer, Conversation(THREE_TURNS), "here").input_ids
    printed = 1 if "bos_token" in chat.template else 0  # as apply_chat_template does, none is added
    assert ids.count(renderer.tokenizer.bos_token_id) == printed
    whole = renderer.tokenizer.apply_chat_template([vars(message) for message in THREE_TURNS], tokenize=True)
    assert ids == whole["input_ids"]


@pytest.mark.parametrize("name", CHATS)
def test_c7_what_is_trained_follows_the_prompt_of_a_generation(name: str) -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS[name]))
    example = example_of(renderer, Conversation(ONE_TURN), "here")
    untrained = example.labels.index(next(label for label in example.labels if label != IGNORED))
    assert renderer.prompt_ids(ONE_TURN[:1]) == example.input_ids[:untrained]


@pytest.mark.parametrize("name", CHATS)
def test_c8_the_end_of_turn_and_the_end_of_text_are_stop_ids(name: str) -> None:
    chat = CHATS[name]
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(chat))
    assert set(renderer.stop_ids) == set(renderer.tokenizer.convert_tokens_to_ids(list(chat.stops)))


@pytest.mark.parametrize("name", CHATS)
def test_last_trains_the_last_answer_only(name: str) -> None:
    chat = CHATS[name]
    assert parts_of(chat, THREE_TURNS, train_on="last") == [(chat.last_answer or chat.answer).format("four")]


def test_all_trains_every_token() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["chatml"]), train_on="all")
    example = example_of(renderer, Conversation(THREE_TURNS), "here")
    assert example.labels == example.input_ids


@pytest.mark.parametrize("name", ["chatml", "marked", "phi-3"])
def test_a_message_says_itself_whether_it_is_trained(name: str) -> None:
    first, second, third = (THREE_TURNS[at].content for at in (1, 3, 5))
    marked = tuple(Message(m.role, m.content, False if m.content == second else None) for m in THREE_TURNS)
    chat = CHATS[name]
    assert parts_of(chat, marked) == [chat.answer.format(first), chat.answer.format(third)]
    chosen = tuple(Message(m.role, m.content, True if m.content == first else None) for m in THREE_TURNS)
    assert parts_of(chat, chosen, train_on="last") == [chat.answer.format(first), chat.answer.format(third)]


@pytest.mark.parametrize("name", ["chatml", "marked"])
def test_a_message_that_is_not_trained_stays_so_under_all(name: str) -> None:
    marked = tuple(Message(m.role, m.content, False if m.content == "It is four." else None) for m in THREE_TURNS)
    parts = parts_of(CHATS[name], marked, train_on="all")
    assert len(parts) == 2
    assert parts[0].endswith("<|im_start|>assistant\n")
    assert parts[1].startswith("\n<|im_start|>user\nAnd three?")


@pytest.mark.parametrize("answer", ["  four  ", "\nfour\n\n", "a<|im_end|>b", "assistant", "<", "\ue000", " x\ue001 "])
def test_answers_that_make_it_hard_to_find_them(answer: str) -> None:
    turns = (("user", answer), ("assistant", answer), ("user", "and?"), ("assistant", "b"))
    messages = tuple(Message(*turn) for turn in turns)
    assert parts_of(CHATS["chatml"], messages) == [f"{answer}<|im_end|>", "b<|im_end|>"]
    assert parts_of(CHATS["llama-3"], messages) == [f"{answer.strip()}<|eot_id|>", "b<|eot_id|>"]


def test_reasoning_that_a_template_takes_apart_is_trained() -> None:
    messages = (Message("user", "two?"), Message("assistant", "<think>\nwell\n</think>\n\nfour"))
    assert parts_of(CHATS["qwen3"], messages) == ["<think>\nwell\n</think>\n\nfour<|im_end|>"]


def test_a_system_prompt_that_moves_into_the_last_question() -> None:
    tokenizer = tokenizer_of(("<s>", "</s>", "[INST]", "[/INST]"), eos="</s>", bos="<s>", template=MISTRAL_WITH_SYSTEM)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    example = example_of(renderer, Conversation((Message("system", "Be brief."), *THREE_TURNS)), "here")
    assert [part.strip() for part in trained_parts(renderer, example)] == [
        "It is four.</s>",
        "user: five,\n  said the model</s>",
        "four</s>",
    ]


def test_a_conversation_that_the_assistant_opens() -> None:
    messages = (Message("assistant", "Hello."), *ONE_TURN)
    assert parts_of(CHATS["chatml"], messages) == ["Hello.<|im_end|>", "It is four.<|im_end|>"]
    assert parts_of(CHATS["smollm2"], messages) == ["Hello.<|im_end|>", "It is four.<|im_end|>"]


def test_a_template_that_changes_the_answers_is_refused_in_one_sentence() -> None:
    upper = "{% for m in messages %}{{ m['content'] | upper | replace('\\ue000', '') | reverse }}{% endfor %}"
    shortened = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][:3] }}\n{% endfor %}"
    for template in (upper, shortened):
        renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(template=template))
        with pytest.raises(DataError, match="chat template"):
            example_of(renderer, Conversation(ONE_TURN), "rows.jsonl:3")


def test_a_template_that_fails_is_named_with_its_own_words() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["gemma"]))
    with pytest.raises(DataError, match="System role not supported"):
        example_of(renderer, Conversation((Message("system", "x"), *ONE_TURN)), "rows.jsonl:9")


@pytest.mark.parametrize("text", ["{% for %}", "{{ nothing.of.this }}", "{{ 1 / 0 }}", "{% for m in messages %}{{ m }"])
def test_a_template_that_is_no_template(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(text)
    with pytest.raises(DataError, match="chat template"):
        CausalLMRenderer.for_tokenizer(tokenizer_of(), chat_template=str(path))


def _cut(random: Random) -> PromptCompletion:
    parts = [MIXED[int(random.random() * len(MIXED))] for _ in range(2 + int(random.random() * 8))]
    text = "".join(parts)
    at = 1 + int(random.random() * (len(text) - 1))
    return PromptCompletion(text[:at], text[at:])


@pytest.mark.slow
@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("bos", [None, "<s>"])
def test_c5_a_completion_is_learned_behind_the_tokens_of_its_prompt(bos: str | None, trim_offsets: bool) -> None:
    """Prompt and completion are one text, cut only where the tokenizer would join them."""
    tokenizer = tokenizer_of(("<s>", "</s>"), eos="</s>", bos=bos, trim_offsets=trim_offsets)
    renderer = replace(CausalLMRenderer.for_tokenizer(tokenizer), plain=True)
    random = Random(5)
    rows = [_cut(random) for _ in range(2500)]
    examples = renderer.examples([renderer.render(row) for row in rows], ["here"] * len(rows))
    as_one = 0
    for row, example in zip(rows, examples, strict=True):
        prompt = tokenizer(row.prompt)["input_ids"]
        assert prompt == renderer.prompt_ids([Message("user", row.prompt)])
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels == [IGNORED] * len(prompt) + example.input_ids[len(prompt) :]
        ids = [each for each in example.input_ids if each != tokenizer.bos_token_id]
        assert tokenizer.decode(ids) == row.prompt + row.completion + "</s>"
        joint = tokenizer(row.prompt + row.completion)["input_ids"]
        if joint[: len(prompt)] == prompt:
            as_one += 1
            assert example.input_ids == [*joint, tokenizer.eos_token_id]
    assert 500 < as_one < 2000  # both kinds are among them


@pytest.mark.parametrize(
    ("prompt", "completion"), [("two ", "and"), ("a", "b"), ("a b", "ok yes"), ("two", "\n\nand"), ("two\n", "\nand")]
)
def test_c5_the_whole_completion_is_trained_and_nothing_before_it(prompt: str, completion: str) -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of())
    example = example_of(renderer, PromptCompletion(prompt, completion), "here")
    assert trained_parts(renderer, example) == [f"{completion}<|endoftext|>"]


@pytest.mark.parametrize("appends_eos", [False, True])
def test_plain_text_ends_with_one_trained_end_of_text(appends_eos: bool) -> None:
    tokenizer = tokenizer_of(("<s>", "</s>"), eos="</s>", bos="<s>", appends_eos=appends_eos)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    for record in (
        Text("two and two"),
        PromptCompletion("two", " and two"),
        Text("two</s>" if not appends_eos else "two"),
    ):
        example = example_of(renderer, record, "here")
        assert example.input_ids.count(tokenizer.eos_token_id) == 1
        assert example.labels[-1] == example.input_ids[-1] == tokenizer.eos_token_id
        assert example.input_ids.count(tokenizer.bos_token_id) == 1


def test_an_adapter_of_plain_text_is_asked_in_plain_text() -> None:
    tokenizer = tokenizer_of(("<s>", "</s>"), eos="</s>", bos="<s>", appends_eos=True)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer, conversations=False)
    assert renderer.chat_template is None
    ids = renderer.prompt_ids([Message("user", "two and")])
    assert ids == [tokenizer.bos_token_id, *tokenizer("two and", add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("setting", ["auto", "chatml", "alpaca"])
def test_the_templates_we_bring_end_each_answer_with_a_stop_id(setting: str) -> None:
    renderer = CausalLMRenderer.for_tokenizer(
        tokenizer_of(("<s>", "</s>"), eos="</s>", bos="<s>"), chat_template=setting
    )
    example = example_of(renderer, Conversation(THREE_TURNS), "here")
    assert trained_parts(renderer, example) == [
        "It is four.</s>",
        "user: five,\n  said the model</s>",
        "four</s>",
    ]
    assert renderer.stop_ids == (renderer.tokenizer.eos_token_id,)
    assert example.input_ids.count(renderer.tokenizer.bos_token_id) == 1


def test_rows_keep_their_order_among_other_kinds() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["chatml"]))
    records = [Text("two"), Conversation(ONE_TURN), PromptCompletion("a", "b"), Conversation(THREE_TURNS), Text("four")]
    together = renderer.examples([renderer.render(record) for record in records], [*"01234"])
    assert together == [example_of(renderer, record, str(at)) for at, record in enumerate(records)]


def test_a_renderer_can_be_pickled() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["phi-3"]))
    again = pickle.loads(pickle.dumps(renderer))
    assert example_of(again, Conversation(ONE_TURN), "here") == example_of(renderer, Conversation(ONE_TURN), "here")


def test_train_true_at_a_turn_that_is_never_trained_is_refused() -> None:
    turns = Conversation((Message("user", "two?", train=True), Message("assistant", "four")))
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["chatml"]))
    with pytest.raises(
        DataError, match="completions trains turns of the assistant, and train: true stands at one of the user"
    ):
        example_of(renderer, turns, "here")
    whole = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["chatml"]), train_on="all")
    assert "two?" in trained_parts(whole, example_of(whole, turns, "here"))[0]


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(DataError, match=r"expected 'end of print statement'\. \(line 2\)"):
        ChatTemplate.probed(tokenizer_for(CHATS["chatml"]), "{% for m in messages %}\n{{ m.content ")


IM_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_an_answer_behind_another_one_is_trained_without_its_header() -> None:
    """Where the template asks for no answer behind an answer, its prompt ends before the header of the next one."""
    asks = "{% if add_generation_prompt and messages[-1].role != 'assistant' %}<|im_start|>assistant\n{% endif %}"
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=IM_TURNS + asks))
    turns = (*ONE_TURN, Message("assistant", "Or five."))
    example = example_of(renderer, Conversation(turns), "here")
    assert trained_parts(renderer, example) == ["It is four.<|im_end|>", "Or five.<|im_end|>"]

"""Templates that mark with `{% generation %}` what the assistant says: they are believed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraft.errors import DataError
from loraft.rows.formats import Conversation, Message
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from tests.tokenization.chats import IM, THREE_TURNS, example_of, tokenizer_of
from tests.tokenization.test_assistant_mask import trained_parts

MANY_MARKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}<think></think>{% endgeneration %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{{ '\n' }}{% generation %}<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_turn_may_have_several_marks() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=MANY_MARKS))
    example = example_of(renderer, Conversation(THREE_TURNS), "here")
    expected = [part for each in (1, 3, 5) for part in (f"<think></think>{THREE_TURNS[each].content}", "<|im_end|>")]
    assert trained_parts(renderer, example) == expected
    last = replace(renderer, train_on="last")
    assert trained_parts(last, example_of(last, Conversation(THREE_TURNS), "here")) == expected[-2:]
    (*_, part) = replace(renderer, split_turns=True).parts(Conversation(THREE_TURNS))
    apart = replace(renderer, split_turns=True)
    assert trained_parts(apart, example_of(apart, part, "here")) == expected[-2:]


def test_marks_that_say_too_much_or_too_little_are_refused() -> None:
    of_all = "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    of_last = (
        "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    )
    for template, said in ((of_all, "marks what the user says"), (of_last, r"marks nothing of messages\[1\]")):
        renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=template))
        with pytest.raises(DataError, match=said):
            example_of(renderer, Conversation(THREE_TURNS), "here")


def test_a_mark_behind_the_space_of_an_answer_cuts_no_token() -> None:
    """A generation feeds `ASSISTANT:`, and the model begins with the space: as one token, not two."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% else %}"
        "ASSISTANT: {% generation %}{{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    tokenizer = tokenizer_of(("<s>", "</s>"), eos="</s>", template=template)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    turns = (Message("user", "two?"), Message("assistant", "two and"))
    example = example_of(renderer, Conversation(turns), "here")
    assert (
        example.input_ids == tokenizer.apply_chat_template([vars(turn) for turn in turns], tokenize=True)["input_ids"]
    )
    assert trained_parts(renderer, example) == [" two and</s>"]
    assert (
        renderer.prompt_ids(turns[:1]) == example.input_ids[: example.labels.index(tokenizer(" two")["input_ids"][0])]
    )

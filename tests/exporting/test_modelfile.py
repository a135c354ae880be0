"""Ollama's Modelfile: what its Go template comes to is what the chat template prints."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from loraft.errors import ModelError
from loraft.exporting.modelfile import modelfile, turn_texts
from loraft.inference.sampling import SamplingParams
from loraft.inference.session import Speaker
from loraft.rows.formats import Message
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from tests.exporting.go_template import rendered
from tests.tokenization.chats import CHATS, tokenizer_for, tokenizer_of
from tests.words import Wording

TALK = [Message("user" if turn % 2 == 0 else "assistant", f"text {turn}\nof it") for turn in range(5)]


@pytest.mark.parametrize("name", CHATS)
def test_the_go_template_prints_what_the_chat_template_prints(name: str) -> None:
    template = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS[name])).template
    assert template is not None
    texts = turn_texts(template)
    systems = [None] if texts.system is None else [None, "Be short.", "two\nlines"]
    for system, turns in product(systems, (1, 3, 5)):
        asked = [*([Message("system", system)] if system else []), *TALK[:turns]]
        told = system or texts.default  # Ollama puts SYSTEM of the Modelfile in front
        read = [*([Message("system", told)] if told else []), *TALK[:turns]]
        assert rendered(texts.in_go(adds_start=False), read) == template.prompt(asked)


def speaker(system: str | None = None, chat: str = "chatml") -> Speaker:
    tokenizer = tokenizer_for(CHATS[chat])
    renderer = CausalLMRenderer.for_tokenizer(tokenizer, system_prompt=system)
    return Speaker("model", Path(), tokenizer, renderer, None)


def test_it_says_how_the_model_was_asked_and_answers(wording: Wording) -> None:
    rules = SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    wording(modelfile(speaker("You answer\nin one line."), rules, "tickets.gguf", adds_start=False))
    wording(modelfile(speaker(chat="smollm2"), SamplingParams(), "tickets.gguf", adds_start=False))


COUNTS = "{% for message in messages %}{{ loop.index ~ message['content'] ~ eos_token }}{% endfor %}"
BRACES = "{% for message in messages %}{{ '{{' ~ message['role'] ~ ':' ~ message['content'] ~ eos_token }}{% endfor %}"


@pytest.mark.parametrize("template", [COUNTS, BRACES], ids=["counts", "braces"])
def test_a_template_that_does_more_is_refused(template: str, wording: Wording) -> None:
    made = CausalLMRenderer.for_tokenizer(tokenizer_of(template=template)).template
    assert made is not None
    with pytest.raises(ModelError) as caught:
        turn_texts(made)
    wording(str(caught.value))


def test_a_system_prompt_that_cannot_be_quoted_is_refused(wording: Wording) -> None:
    with pytest.raises(ModelError) as caught:
        modelfile(speaker('say """'), SamplingParams(), "tickets.gguf", adds_start=False)
    wording(str(caught.value))

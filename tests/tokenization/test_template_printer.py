"""What an answer says, without what a template prints before that."""

from __future__ import annotations

import pytest

from loraft.rows.formats import Conversation, Message
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.examples import IGNORED
from tests.tokenization.chats import CHATS, tokenizer_of
from tests.tokenization.test_trl_templates import ENDS, TEMPLATES, TOKEN

THINKING = ("glm4moe", "gptoss", "muse_glimmer", "qwen3", "qwen3_5_think")
OTHERS = {**TEMPLATES, **{name: chat.template for name, chat in CHATS.items() if name not in TEMPLATES}}
SAID = "The right answer: {}"


def renderer_of(template: str) -> CausalLMRenderer:
    tokens = tuple(dict.fromkeys([*TOKEN.findall(template), "<think>", "</think>", "<s>", "</s>"]))
    eos = next(end for end in ("<|return|>", *ENDS) if end in tokens)
    return CausalLMRenderer.for_tokenizer(tokenizer_of(tokens, eos=eos, bos="<s>", template=template))


def answered(renderer: CausalLMRenderer, **thought: str) -> tuple[str, list[int]]:
    """The answer of a model that learned a row by heart: as it is shown, and its tokens."""
    row = Conversation((Message("user", "Question"), Message("assistant", SAID, more=thought)))
    (example,) = renderer.examples([renderer.render(row)], ["a:1"])
    ids = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORED]
    ids = ids[: next(place for place, token in enumerate(ids) if token in renderer.stop_ids)]
    return renderer.tokenizer.decode(ids, skip_special_tokens=True), ids


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("thought", [{}, {"reasoning_content": "a thought"}])
def test_thoughts_and_names_of_channels_are_no_part_of_what_is_said(name: str, thought: dict[str, str]) -> None:
    renderer = renderer_of(TEMPLATES[name])
    text, ids = answered(renderer, **thought)
    assert text != SAID
    assert renderer.said(text, ids) == SAID


@pytest.mark.parametrize("name", ["llama3", "gemma", "vicuna", "chatml", "mistral", "phi-3"])
def test_an_answer_alone_is_what_is_said(name: str) -> None:
    renderer = renderer_of(OTHERS[name])
    text, ids = answered(renderer)
    assert renderer.said(text, ids) == text
    assert text.strip() == SAID


def test_what_ends_no_thought_is_kept_and_what_is_cut_in_it_too() -> None:
    renderer = renderer_of(TEMPLATES["qwen3"])
    assert renderer.said(SAID) == SAID
    assert renderer.said("<think>\nhm") == "<think>\nhm"
    assert renderer.said(f"<think>\nhm</think>oh\n</think>\n\n{SAID}") == SAID  # the template cuts at the last tag
    with_tags = f"<think>\nhm\n</think>\n\n{SAID}"
    assert renderer.remembered(with_tags, ()) == with_tags  # the template cuts off by itself what is in the text
    opened_by_the_prompt = renderer_of(TEMPLATES["deepseek_r1_distill"])
    assert opened_by_the_prompt.said(f"hm\n</think>\n\n{SAID}") == SAID

"""How the turns of the assistant end, in templates that end them with several tokens, or not everywhere alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraft.rows.formats import Conversation, Message
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from tests.tokenization.chats import IM, THREE_TURNS, example_of, tokenizer_of
from tests.tokenization.test_assistant_mask import trained_parts

SPECIAL = ("<|user|>", "<|tool|>", "<|assistant|>", "<|said|>", "<|end|>", "<|return|>", "<|call|>")


def template_of(between: str, last: str, opens: str = "") -> str:
    """A template that prints `last` behind the last answer and `between` behind each other one."""
    return (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}"
        f"{{{{ {last!r} if loop.last else {between!r} }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt or {opens!r} %}}<|assistant|>{{% endif %}}"
    )


def renderer_of(template: str, eos: str = "</s>") -> CausalLMRenderer:
    return CausalLMRenderer.for_tokenizer(tokenizer_of((*SPECIAL, "</s>"), eos=eos, template=template))


def ends_of(renderer: CausalLMRenderer) -> list[str]:
    answers = [message.content for message in THREE_TURNS if message.role == "assistant"]
    parts = trained_parts(renderer, example_of(renderer, Conversation(THREE_TURNS), "here"))
    return [part.removeprefix(answer) for part, answer in zip(parts, answers, strict=True)]


@pytest.mark.parametrize(
    ("end", "trained"),
    [("<|said|><|end|>", "<|said|><|end|>"), ("\n<|said|>, over<|end|>\n", "\n<|said|>, over<|end|>")],
)
def test_every_token_of_the_end_is_trained_and_the_last_one_stops(end: str, trained: str) -> None:
    """As Cohere's models have it: where the first token is all that is learned, the last may not come."""
    renderer = renderer_of(template_of(end, end))
    assert ends_of(renderer) == [trained] * 3
    assert renderer.stop_ids == tuple(renderer.tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"]))
    assert renderer.notes == ()


def test_what_stands_behind_the_whole_conversation_is_no_end() -> None:
    """An end of text, as Phi-3 has it, or the header of the next answer, as Cohere's templates for tools do."""
    assert ends_of(renderer_of(template_of("<|end|>\n", "<|end|>\n</s>"))) == ["<|end|>"] * 3
    with_header = template_of("<|said|><|end|>", "<|said|><|end|>", opens="always")
    with_header = with_header.replace("<|{{ m.role }}|>", "<|call|><|{{ m.role }}|>").replace("%}<|a", "%}<|call|><|a")
    assert ends_of(renderer_of(with_header, eos="<|end|>")) == ["<|said|><|end|>"] * 3


def test_an_end_that_more_must_follow_is_put_behind_the_last_answer_too_and_told() -> None:
    renderer = renderer_of(template_of("<|end|>", ""))
    assert ends_of(renderer) == ["<|end|>"] * 3
    assert "<|end|>" in renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_ids))
    (note,) = renderer.notes
    assert "<|end|>" in note
    assert ends_of(renderer_of(template_of("\n<|end|>", ""))) == ["\n<|end|>"] * 3
    as_glm = renderer_of(template_of("", ""))
    assert ends_of(as_glm) == ["<|user|>"] * 3
    apart = replace(as_glm, split_turns=True)
    rows = [apart.render(part) for part in apart.parts(Conversation(THREE_TURNS))]
    assert [trained_parts(apart, row)[0][-8:] for row in apart.examples(rows, [*"abc"])] == ["<|user|>"] * 3
    open_question = Conversation((*THREE_TURNS, Message("user", "And?")))
    assert as_glm.render(open_question).source.text.endswith("<|user|>And?")


def test_an_answer_that_ends_otherwise_where_more_follows_is_told() -> None:
    """As gpt-oss has it: `<|end|>` there ends a channel, and a model that learned to stop with it would go on."""
    renderer = renderer_of(template_of("<|end|>", "<|return|>"))
    assert ends_of(renderer) == ["", "", "<|return|>"]
    (finding,) = renderer.render(Conversation(THREE_TURNS)).findings
    assert "<|return|>" in finding
    assert "data.split_turns: true" in finding
    assert renderer.render(Conversation(THREE_TURNS[:2])).findings == ()
    apart = replace(renderer, split_turns=True)
    rows = [apart.render(part) for part in apart.parts(Conversation(THREE_TURNS))]
    assert [trained_parts(apart, row)[0][-10:] for row in apart.examples(rows, [*"abc"])] == ["<|return|>"] * 3
    assert all(row.findings == () for row in rows)


def test_a_template_that_prints_no_answer_of_text_has_no_end() -> None:
    """Its first token, which begins the conversation, would else be taken for it."""
    pictures = "<|im_start|>{% for m in messages if m.content is none %}{{ m.picture }}<|im_end|>{% endfor %}"
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, template=pictures))
    assert renderer.template is not None
    assert renderer.template.end.stop_token is None


def test_a_call_ends_with_the_last_token_of_an_end() -> None:
    end = "<|said|><|end|>"
    called = f"'{end}' if not m.tool_calls else m.tool_calls[0].function.name + '<|call|><|end|>'"
    template = (
        template_of(end, end)
        .replace(f"'{end}' if loop.last", f"{called} if loop.last")
        .replace(f"else '{end}'", f"else {called}")
    )
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    turns = (Message("user", "Time?"), Message("assistant", "", more={"tool_calls": [call]}), *THREE_TURNS[:2])
    renderer = renderer_of(template)
    parts = trained_parts(renderer, example_of(renderer, Conversation(turns), "here"))
    assert parts == ["now<|call|><|end|>", "It is four.<|said|><|end|>"]


def test_what_a_tool_says_is_not_trained_though_it_writes_the_end_of_a_turn() -> None:
    """Where no token ends a call, as with GLM's models, the next one that stands anywhere would else be its end."""
    template = template_of("", "").replace(
        "{{ m.content }}{%",
        "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}{%",
        1,
    )
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    called = (Message("user", "Time?"), Message("assistant", "", more={"tool_calls": [call]}))
    said = (Message("tool", "it is <|user|> noon"), Message("assistant", "Noon."), *THREE_TURNS[:2])
    renderer = renderer_of(template.replace("<|{{ m.role }}|>", "{% if m.role != 'tool' %}<|{{ m.role }}|>{% endif %}"))
    parts = trained_parts(renderer, example_of(renderer, Conversation((*called, *said)), "here"))
    assert parts == ["now", "Noon.<|user|>", "It is four.<|user|>"]


def test_a_call_ends_with_what_begins_the_answer_of_the_tool_where_nothing_else_ends_it() -> None:
    """As GLM's models call: to say so is what stops them, and a row may end with a call."""
    called = "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}"
    renderer = renderer_of(template_of("", "").replace("{{ m.content }}", f"{{{{ m.content }}}}{called}"), eos="</s>")
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    asks = (Message("user", "Time?"), Message("assistant", "", more={"tool_calls": [call]}))
    turns = (*asks, Message("tool", "noon"), Message("assistant", "Noon."), *asks)
    parts = trained_parts(renderer, example_of(renderer, Conversation(turns), "here"))
    assert parts == ["now<|tool|>", "Noon.<|user|>", "now<|tool|>"]
    ends = renderer.tokenizer.convert_tokens_to_ids(["</s>", "<|user|>", "<|tool|>"])
    assert renderer.stop_ids == tuple(ends)

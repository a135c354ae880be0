"""Turns that a template cannot tell apart: some of them are rendered, and all are found where each by itself is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from loraft.errors import DataError
from loraft.rows.formats import Conversation, Message
from loraft.tokenization import template_printer
from loraft.tokenization.causal_lm_rows import CausalLMRenderer, RenderedRow
from loraft.tokenization.printed_turns import PrintedTurns
from tests.tiny import mostly_slow
from tests.tokenization.chats import (
    CHATS,
    MISTRAL_V3,
    MISTRAL_WITH_SYSTEM,
    QWEN3_WITH_TOOLS,
    R1_DISTILL,
    tokenizer_for,
    tokenizer_of,
)
from tests.tokenization.test_trl_templates import FUNCTION, TEMPLATES, TOKEN, TOOL

SAYS_WHEN_ASKED = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}"
    "<|assistant|>{% if '<quiet>' in messages[-1].content %}<think></think>{% endif %}{% endif %}"
)
"""What a question says decides what generation feeds, and is nowhere else in what is printed."""
SHORT = (
    "{% for m in messages %}<|{{ m.role }}|>{% set asked = messages[loop.index0 - 1].content %}"
    "{% if m.role == 'assistant' and ASKED %}(short) {% endif %}{{ m.content }}<|end|>{% endfor %}"
    "{% set asked = messages[-1].content %}{% if add_generation_prompt %}<|assistant|>{% if ASKED %}(short) {% endif %}"
    "{% endif %}"
)
"""What a question says decides how the answer begins, which is no part of it."""
TOLD = {
    "system in the last question": MISTRAL_WITH_SYSTEM,
    "system in the last one": MISTRAL_V3,
    "thoughts of calls": QWEN3_WITH_TOOLS,
    "opens a thought": R1_DISTILL,
    "quiet": SAYS_WHEN_ASKED,
    "quiet, which is no markup": SAYS_WHEN_ASKED.replace("<quiet>", "quiet"),
    "a word": SHORT.replace("ASKED", "'quiet' in asked"),
    "a word that begins": SHORT.replace("ASKED", "asked.startswith('quiet')"),
}


def turns(count: int, **thought: str) -> list[Message]:
    """Questions and answers, each another."""
    of = enumerate(["user", "assistant"] * count)
    return [Message(role, f"{role} {at // 2}", more=thought if role == "assistant" else {}) for at, role in of]


def called(count: int, at: int = 0, **thought: str) -> list[Message]:
    """Calls in a row, each with what a tool says."""
    found = []
    for number in range(at, at + count):
        name = f"call{number:05d}"
        call = {"type": "function", "id": name, "function": {**FUNCTION, "arguments": {"city": f"City {number}"}}}
        more = {"tool_calls": [call], **(thought if number % 2 else {})}
        said = Message("tool", f"sun {number}", more={"name": "weather", "tool_call_id": name})
        found += [Message("assistant", "see" if number % 3 == 1 else "", more=more), said]
    return found


THOUGHT = {"reasoning_content": "a thought"}
TAGGED = [replace(each, content=f"<think>\nhm\n</think>\n\n{each.content}") for each in turns(6)[1::2]]
CONVERSATIONS = {
    "turns": (turns(9), ()),
    "with a system prompt": ([Message("system", "Be brief."), *turns(7)], ()),
    "thoughts": ([*turns(3), *turns(4, **THOUGHT), *turns(2)], ()),
    "tags": ([each for pair in zip(turns(6)[::2], TAGGED, strict=True) for each in pair] + turns(3), ()),
    "calls": (
        [*turns(2)[:3], *called(5, **THOUGHT), *turns(3)[1:5], *called(4, 5, **THOUGHT), Message("assistant", "so")],
        (TOOL,),
    ),
    "two answers": ([*turns(3), Message("assistant", "and more"), *turns(4), Message("assistant", "more")], ()),
    "markup": (
        [replace(each, content=f"{each.content}<quiet>") if at % 6 == 4 else each for at, each in enumerate(turns(8))],
        (),
    ),
    "a word": (
        [
            replace(each, content="Quiet, be quiet" if at % 6 else "quiet") if at % 4 == 2 else each
            for at, each in enumerate(turns(8))
        ],
        (),
    ),
}


def rendered(renderer: CausalLMRenderer, conversation: Conversation) -> list[RenderedRow] | str:
    try:
        return [renderer.render(part) for part in renderer.parts(conversation)]
    except DataError as error:
        return str(error)


def alone(_: PrintedTurns, turns: Iterable[int]) -> list[list[int]]:
    return [[turn] for turn in turns]


def renderer_of(template: str) -> CausalLMRenderer | None:
    tokens = tuple(dict.fromkeys([*TOKEN.findall(template), "<s>", "</s>"]))
    try:
        return CausalLMRenderer.for_tokenizer(tokenizer_of(tokens, eos="</s>", bos="<s>", template=template))
    except DataError:
        return None


EVERY = {**TOLD, **{name: chat.template for name, chat in CHATS.items()}}


@pytest.mark.parametrize("name", mostly_slow([*EVERY, *TEMPLATES], "opens a thought", "chatml", "llama3"))
def test_turns_of_a_kind_are_found_where_each_by_itself_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = renderer_of({**TEMPLATES, **EVERY}[name])
    for messages, tools in CONVERSATIONS.values() if renderer is not None else ():
        for split in (False, True):
            maker = replace(renderer, split_turns=split)
            quick = rendered(maker, Conversation(tuple(messages), tools))
            with monkeypatch.context() as patch:
                patch.setattr(PrintedTurns, "kinds", alone)
                assert quick == rendered(maker, Conversation(tuple(messages), tools))


@pytest.mark.parametrize(
    "name", mostly_slow([*CHATS, "opens a thought", "thoughts of calls", "qwen3_5_think"], "qwen3_5_think", "chatml")
)
def test_so_many_times_is_a_conversation_rendered_however_many_turns_it_has(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn's prompt rendered anew: 100 turns took 330 ms with Qwen3.5's template, and take 30.

    That template asks whether an item of a content has an image: which contents say so is nothing to it.
    """
    tokenizer = tokenizer_for(CHATS[name]) if name in CHATS else None
    renderer = CausalLMRenderer.for_tokenizer(tokenizer) if tokenizer else renderer_of({**TEMPLATES, **TOLD}[name])
    assert renderer is not None
    count, render = [0], template_printer.render_bounded

    def counting(*args: Any, **options: Any) -> Any:
        count[0] += 1
        return render(*args, **options)

    monkeypatch.setattr(template_printer, "render_bounded", counting)
    renderer.render(Conversation(tuple(turns(10))))
    of_few, count[0] = count[0], 0
    keys = ("image", "a", "text", "video", "an")
    many = [replace(each, content=f"{each.content} {keys[at % 5]}") for at, each in enumerate(turns(50))]
    renderer.render(Conversation(tuple(many)))
    assert count[0] == of_few < 20

"""What is read of a request: bodies as other people's clients send them, and what of them is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loraft.serving.bodies import BadRequestError, Body, ChatBody, CompletionBody, read_body

TURNS: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
NOTHING_MORE = {"frequency_penalty": 0, "logprobs": None, "n": 1, "presence_penalty": 0.0, "seed": None, "top_p": 1}
LOOK: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SENT: dict[str, tuple[type[Body], dict[str, Any]]] = {
    "langchain_openai.OpenAI": (CompletionBody, {"prompt": ["hi"], "max_tokens": 8, **NOTHING_MORE}),
    "lm_eval local-completions": (
        CompletionBody,
        {"prompt": ["hi"], "max_tokens": 24, "temperature": 0, "stop": ["\n", "."], "seed": 1234},
    ),
    "openai, an answer given back": (
        ChatBody,
        {"messages": [*TURNS, {"content": "Hello.", "refusal": None, "role": "assistant"}, *TURNS], "max_tokens": 8},
    ),
    "smolagents": (
        ChatBody,
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *TURNS]},
    ),
    "keys of another server, without a value": (
        ChatBody,
        {"messages": TURNS, "reasoning_effort": None, "max_tokens": None, "stream_options": {"include_usage": None}},
    ),
    "openai-agents": (ChatBody, {"stream": True, "messages": TURNS, "max_tokens": 8, "tools": [LOOK]}),
}


@pytest.mark.parametrize("client", SENT)
def test_what_mainstream_clients_send_is_taken(client: str) -> None:
    kind, body = SENT[client]
    asked = read_body(kind, json.dumps({"model": "base", **body}).encode()).asked(100)
    assert asked.messages[-1].content == "hi"


@pytest.mark.parametrize("prompt", [["one", "two"], [], [[1, 2]], [1, 2], 5])
def test_more_than_one_text_is_no_prompt(prompt: object) -> None:
    with pytest.raises(BadRequestError, match="prompt: must be one text") as refused:
        read_body(CompletionBody, json.dumps({"model": "base", "prompt": prompt}).encode())
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {"type": "function", "function": {}}, {"function": "look"}])
def test_a_tool_without_a_name_is_refused(tool: dict[str, Any]) -> None:
    """By it is found whether the template prints the tool: without one it could be left out unseen."""
    body = {"model": "base", "messages": TURNS, "tools": [LOOK, tool]}
    with pytest.raises(BadRequestError, match="has no name") as refused:
        read_body(ChatBody, json.dumps(body).encode())
    assert refused.value.param == "tools.1"

"""Chat templates in a sandbox with a budget: what they print is transformers' own, and none costs more than it may."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from loraft.errors import DataError
from loraft.tokenization import template_budget
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.template_budget import TemplateBoundError
from loraft.tokenization.template_sandbox import render_bounded
from tests.tokenization.chats import CHATS, ONE_TURN, THREE_TURNS, tokenizer_for, tokenizer_of

ASKED = [{"role": "user", "content": "hi"}]
KITCHEN_SINK = """
{%- macro shout(text, times=2) %}{{ text | upper }}{% for _ in range(times) %}!{% endfor %}
{{ caller() if caller }}{% endmacro %}
{%- set ns = namespace(found=false, text='', list=[]) %}
{%- for m in messages if m.role != 'none' %}
{%- if loop.index0 > 10 %}{% break %}{% endif %}
{%- set ns.text = ns.text ~ loop.index ~ '/' ~ loop.length ~ m['role'] %}{% set ns.list = ns.list + [m.content[:3]] %}
{{- loop.previtem.role if loop.previtem }} {{ loop.last }} {{ loop.cycle('a', 'b') }} {{ loop.changed(m.role) }}
{%- else %}nothing{% endfor %}
{{ ns.text }} {{ ns.list }} {{ ns.list | join(', ') }} {{ {'a': [1, 2.5, none, true]} | tojson(indent=2) }} {{ 7 % 4 }}
{{ '%s has %05.1f' % ('it', 3.14159) }} {{ '{:>8}|{name!r}'.format('x', name='y') }} {{ '%d'|format(3) }} {{ 2 ** 10 }}
{{ 'a-b-c'.split('-') | reverse | list }} {{ 'ab' * 3 }} {{ [1, 2] * 2 }} {{ 'x'.ljust(4) }}| {{ '-'.join(['a', 'b']) }}
{{ shout('loud') }}{% call shout('more', 1) %}{{ 'inner' }}{% endcall %}
{%- for item in [[1, [2, 3]], [4]] recursive %}<{{ loop(item) if item is iterable else item }}>{% endfor %}
{% set block %}captured {{ messages | length }}{% endset %}{{ block }} {{ block | replace('captured', 'kept') }}
{{ messages | map(attribute='role') | unique | list }}
{{ messages | selectattr('role', 'equalto', 'user') | list | count }}
{{ "multi\nline" | indent(4) }} {{ '  trim ' | trim }} {{ undefined_thing | default('dflt') }} {{ dict(a=1, b='2') }}
{{ messages | last | attr('role') }} {{ (1, 2) }} {{ 1 if 'user' in ['user'] else 0 }} {{ tools is none }}
{{ 3 + 4.5 }} {{ 10 // 3 }}
{{ [3, 1, 2] | sort }} {{ {'b': 1, 'a': 2} | dictsort }} {{ 'A' | lower | title | center(9) }}
{{ bos_token is defined }}
"""
HOSTILE = {
    "two loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "empty loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for a in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 4 }}{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n-1) if n }}{{ f(n-1) if n }}{% endmacro %}{{ f(60) }}",
    "sorting": "{% for i in range(99999) %}{{ range(99999) | sort | length }}{% endfor %}",
    "a product": "{{ 'a' * 10**9 }}",
    "a width": "{{ 'a'.ljust(10**9) }}",
    "zeros": "{{ 'a'.zfill(10**9) }}",
    "a filter's width": "{{ 'a' | center(10**9) }}",
    "an indentation": "{{ ('a\n' * 1000) | indent(10**9) }}",
    "json": "{{ [[1]] | tojson(indent=10**9) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a format's star": "{{ '%*d' | format(10**9, 1) }}",
    "str.format": "{{ '{:>1000000000}'.format(1) }}",
    "str.format in itself": "{{ '{:>{w}}'.format(1, w=10**9) }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "doubling": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "squaring": "{% set n = namespace(x=10) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "nested lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
    "nested namespaces": "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set m = namespace() %}"
    "{% set m.a = n.x %}{% set m.b = n.x %}{% set n.x = m %}{% endfor %}{{ n.x }}",
    "replacing": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "replacing by filter": "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
    "joining": "{% set x = 'a' * 100000 %}{{ x.join(range(99999) | map('string')) }}",
    "joining by filter": "{% set x = 'a' * 1000000 %}{{ ([x] * 10000) | join }}",
    "printing": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "a macro": "{% macro f() %}{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}{% endmacro %}{{ f() }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "translating": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "keeping": "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + ['a' * 9000] %}{% endfor %}",
    "cutting": "{% set x = 'a' * 1000000 %}{% set n = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set n.l = n.l + [x[i:]] %}{% endfor %}",
    "digits": "{{ 1.5 | round(10**9, 'ceil') }}",
    "an odd filter": "{{ ('a.' * 5000000) | urlize }}",
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("generation_prompt", [False, True])
def test_what_is_rendered_is_what_transformers_renders(name: str, generation_prompt: bool) -> None:
    chat = CHATS[name]
    tokenizer = tokenizer_for(chat)
    for turns in (ONE_TURN, THREE_TURNS, THREE_TURNS[:-1]):
        messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in turns]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        rendered, _ = render_bounded(
            messages, chat.template, tools=(), special_tokens=tokenizer.special_tokens_map,
            add_generation_prompt=generation_prompt,
        )  # fmt: skip
        assert rendered == expected


def test_all_that_a_template_can_say_is_said_as_in_transformers() -> None:
    tokenizer = tokenizer_of(template=KITCHEN_SINK)
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in THREE_TURNS]
    messages[1]["tool_calls"] = None
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"é": "<&>"}}}]
    for given in (None, tools):
        expected = tokenizer.apply_chat_template(messages, tools=given, tokenize=False)
        rendered, _ = render_bounded(
            messages, KITCHEN_SINK, tools=given or (), special_tokens=tokenizer.special_tokens_map
        )
        assert rendered == expected
    dated = "{{ strftime_now('%Y') }}{{ tools | tojson }}"
    expected = tokenizer.apply_chat_template(messages, tools=tools, chat_template=dated, tokenize=False)
    assert render_bounded(messages, dated, tools=tools, special_tokens={})[0] == expected
    with pytest.raises(Exception, match="no such role"):
        render_bounded(ASKED, "{{ raise_exception('no such role') }}", tools=(), special_tokens={})


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_ended_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "MOST_SECONDS", 0.1)
    begun = time.thread_time()
    with pytest.raises(TemplateBoundError):
        render_bounded(ASKED, HOSTILE[name], tools=(), special_tokens={})
    assert time.thread_time() - begun < 2


@pytest.mark.parametrize(
    "template",
    [
        "{{ '%d of %s' % (170000000, 5) }} {{ '{} {:,}'.format(1700000000, 999999) }} {{ '1000000 %s' | format(1) }}",
        "{% set n = namespace(l=[]) %}{% for m in messages * 99 %}{% set n.l = n.l + [m] %}{% endfor %}{{ n.l|count }}",
        "{{ messages[0].content.find('x', 200000) }} {{ nothing | default(1700000000) }} {{ '5' | int(1700000000) }}",
    ],
)
def test_large_numbers_and_long_lists_are_no_fault(template: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "word " * 50_000}] * 2
    expected = tokenizer_of().apply_chat_template(messages, chat_template=template, tokenize=False)
    assert render_bounded(messages, template, tools=(), special_tokens={})[0] == expected


def test_a_long_conversation_may_be_rendered_however_it_is_put_together() -> None:
    adding = "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t + m.content %}{% endfor %}{{ n.t }}"
    text = "word " * 2_000_000
    rendered, _ = render_bounded([{"role": "user", "content": text}] * 4, adding, tools=(), special_tokens={})
    assert rendered == text * 4


def test_the_error_says_where_the_template_is_from(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(HOSTILE["a product"], encoding="utf-8")
    with pytest.raises(DataError) as raised:
        CausalLMRenderer.for_tokenizer(tokenizer_of(), chat_template=str(path))
    (problem,) = raised.value.problems
    assert str(path) in problem.message
    assert problem.key == "data.chat_template"

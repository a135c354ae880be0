"""Chat templates that want out of the sandbox, or more than there is."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from loraft.tokenization import template_budget
from loraft.tokenization.template_sandbox import render_bounded
from tests.cli.running import loraft, refused
from tests.faults.conftest import Trial
from tests.tiny import save_tiny
from tests.training.building import ROWS_OF, write_rows

PROMISE = "a hostile chat template: an error in under 2 s and 1 GB, and nothing of this machine told"
SAID = [{"role": "user", "content": "hi"}]
OUT = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch RAN').read() }}",
    "{{ joiner.__init__.__globals__['os'].system('touch RAN') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('touch RAN') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__closure__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ [''] | groupby('__class__.__mro__') }}",
    "{{ [''] | sum(attribute='__class__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}' | format('') }}",
    "{{ ('{0.__init__.__globals__}'.format)(cycler) }}",
    "{{ ['{0.__class__}'] | map('format', '') | list }}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{{ (messages | select).gi_code }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}{{ x }}",
    "{% extends '/etc/passwd' %}",
    "{% from 'os' import system %}{{ system('touch RAN') }}",
    "{{ messages.append(messages) }}{{ messages }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages.clear() }}{{ messages.pop() }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set x = messages %}{{ x.sort(key=raise_exception) }}",
    "{{ 'a' * 10**10 }}",
    "{{ ['a' * 10**6] * 10**6 }}",
    "{{ range(10**12) | list }}",
    "{{ range(10**9) | join('x' * 10**6) }}",
    "{% for a in range(10**9) %}{{ a }}{% endfor %}",
    "{{ ('a' * 10**6).split('a') | map('string') | join('b' * 10**6) }}",
    "{{ (10**99999) ** 99999 }}",
    "{{ ('a' * 10**7) | wordwrap(1) | wordcount }}",
    "{{ messages | tojson(indent=10**10) }}",
    "{{ '%' + '9' * 12 + 'd' % 1 }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 50_000 + "1 }}",
    "{% if " + "a and " * 20_000 + "a %}{% endif %}",
    "{{ " + "[" * 3000 + "]" * 3000 + " }}",
)
TELLS = ("<class", "subclasses", "__globals__", "root:", "/bin/", "function ", "module '", "0x")
"""What none of them may have in what it prints."""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(OUT)))
def test_a_hostile_template_gets_nowhere(
    number: int, trial: Trial, torture: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if not torture:
        monkeypatch.setattr(template_budget, "MOST_SECONDS", 0.2)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with trial(PROMISE):
        try:
            text, _ = render_bounded(
                SAID, OUT[number].replace("RAN", str(tmp_path / "ran")), tools=(), special_tokens={}
            )
        except Exception as error:  # whatever the template raises is told as its fault
            text = f"{type(error).__name__}"
        assert not [word for word in TELLS if word in text], text[:300]
        assert time.process_time() - began < 2
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9
        assert not list(tmp_path.iterdir())
    assert SAID == [{"role": "user", "content": "hi"}]


@pytest.mark.slow
@pytest.mark.parametrize("template", ["{{ 'a' * 10**10 }}", OUT[2], "{% for a in range(10**9) %}{% endfor %}"])
def test_so_through_the_command_line(template: str, trial: Trial, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", ROWS_OF["causal_lm"]())
    (tmp_path / "chat.jinja").write_text(template)
    (tmp_path / "c.yaml").write_text(
        "model: {name_or_path: model}\ndata: {train: rows.jsonl, chat_template: chat.jinja}\n"
    )
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with trial(PROMISE):
        said = refused(loraft("preview", "c.yaml", cwd=tmp_path))
        assert "data.chat_template" in said
        assert time.process_time() - began < 4  # with the loading of libraries, and a second for the template
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9

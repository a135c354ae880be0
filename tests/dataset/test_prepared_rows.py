"""What becomes of rows between a config and its examples: cut, refused, skipped, told."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData, prepare
from loraft.errors import DataError
from tests.tokenization.chats import CHATS, tokenizer_for, tokenizer_of

Prepare = Callable[..., PreparedData]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_for(CHATS["chatml"])


@pytest.fixture
def prepared(tokenizer: PreTrainedTokenizerFast) -> Prepare:
    def run(train: Any, *, seed: int = 0, evaluation: Any = None, **data: Any) -> PreparedData:
        section = {"train": train, "eval": evaluation, **data}
        config = RunConfig.model_validate({"seed": seed, "model": {"name_or_path": "m"}, "data": section})
        return prepare(config, tokenizer)

    return run


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_pieces_of_a_split_row_are_held_out_together(prepared: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"text {n} " * 30} for n in range(8)])
    data = prepared(path, evaluation=0.25, max_length=16)
    assert len(data.eval) > 2
    assert not {example.where for example in data.eval} & {example.where for example in data.train}


@pytest.mark.parametrize("choice", ["drop", "truncate", "split"])
def test_c6_no_token_is_invented_where_a_row_is_cut(prepared: Prepare, tmp_path: Path, choice: str) -> None:
    text = "".join(f"word{n} " for n in range(60))
    path = write(tmp_path / "a.jsonl", [{"text": text}, {"text": "short"}])
    whole = prepared(path).train[0]
    data = prepared(path, max_length=50, on_overlength=choice)
    pieces = [example for example in data.train if example.where == whole.where]
    assert data.report.sources[0].overlength == 1
    joined = [token for piece in pieces for token in piece.input_ids]
    end = whole.input_ids[-1]
    assert whole.input_ids.count(end) == 1
    if choice == "drop":
        assert pieces == []
    elif choice == "truncate":
        assert joined == whole.input_ids[:50]
        assert end not in joined
    else:
        assert joined == whole.input_ids
        assert {len(piece.input_ids) for piece in pieces[:-2]} == {50}
        assert len(pieces[-2].input_ids) in (49, 50)
        assert not any(end in piece.input_ids for piece in pieces[:-1])


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_c6_too_long_is_an_error_where_the_config_says_so(prepared: Prepare, tmp_path: Path, on_bad_row: str) -> None:
    path = write(tmp_path / "a.jsonl", [chat("q", "a"), chat("q", "word " * 60)])
    with pytest.raises(DataError, match=r":2.*max_length"):
        prepared(path, max_length=40, on_overlength="error", on_bad_row=on_bad_row)


def test_every_problem_of_every_source_is_told(prepared: Prepare, tmp_path: Path) -> None:
    bad = write(tmp_path / "a.jsonl", [chat("q", "a"), "{", chat("q", "")])
    missing = str(tmp_path / "none.jsonl")
    with pytest.raises(DataError) as caught:
        prepared([bad, missing])
    assert {problem.where for problem in caught.value.problems} == {f"{bad}:2", f"{bad}:3", missing}


def test_a_row_with_a_key_twice_is_a_bad_row(prepared: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "good text"}, '{"text": "a", "text": "b"}', {"text": "good"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: has the key 'text' twice"):
        prepared(path)
    data = prepared(path, on_bad_row="skip")
    assert (data.report.sources[0].bad, data.report.sources[0].kept) == (1, 2)


def test_a_row_that_the_template_refuses_is_a_bad_row(prepared: Prepare, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['content'] == 'no' %}{{ raise_exception('never say no') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    path = write(tmp_path / "a.jsonl", [chat("q", "a"), chat("no", "a")])
    with pytest.raises(DataError, match=r":2.*never say no"):
        prepared(path, chat_template=str(template))
    data = prepared(path, chat_template=str(template), on_bad_row="skip")
    assert data.report.sources[0].bad == 1
    assert len(data.train) == 1


def test_defaults_of_the_section_hold_for_sources_without_their_own(prepared: Prepare, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"q": "x ", "a": "y"}])
    second = write(tmp_path / "b.jsonl", [{"frage": "x ", "antwort": "y"}])
    own = {"path": second, "columns": {"prompt": "frage", "completion": "antwort"}}
    data = prepared([first, own], columns={"prompt": "q", "completion": "a"})
    assert data.train[0].input_ids == data.train[1].input_ids


@pytest.mark.slow
def test_an_evaluation_on_rows_that_are_trained_is_told(prepared: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat("q", "a")])
    assert any("nothing about new rows" in note for note in prepared(path, evaluation=path).report.notes)
    assert prepared("builtin:tickets", evaluation={"path": "builtin:tickets", "split": "eval"}).report.notes == ()


def test_text_alone_makes_no_chat_template_up(tmp_path: Path) -> None:
    config = {
        "model": {"name_or_path": "m"},
        "data": {"train": write(tmp_path / "a.jsonl", [{"text": "x y"}]), "eval": None},
    }
    renderer = prepare(RunConfig.model_validate(config), tokenizer_of()).renderer
    assert renderer.chat_template is None
    assert renderer.notes == ()


def mutated(line: bytes, random: Random) -> bytes:
    """`line` with one to three bytes, values or pieces changed."""
    for _ in range(1 + int(random.random() * 3)):
        at, kind = int(random.random() * (len(line) + 1)), int(random.random() * 6)
        change = [b"\0", b"\xff", b'"', b"}", b"\\ud800", b"null", b"", b"[[", b"\xe2\x80"][int(random.random() * 9)]
        if kind < 2:
            line = line[:at] + change + line[at:]
        elif kind == 2:
            line = line[:at] + change + line[at + 5 :]
        elif kind == 3:
            line = line.replace(b'"four"', [b"null", b"4", b"[]", b"{}", b'""', b'" "', b"true"][at % 7])
        elif kind == 4:
            line = line.replace(b"assistant", change)
        else:
            line = line[:at] + line[at : at + 20] * 20 + line[at:]
    return line.replace(b"\n", b" ")


@pytest.mark.slow
def test_c46_a_thousand_mutated_rows(prepared: Prepare, tmp_path: Path) -> None:
    random = Random(46)
    good = json.dumps(chat("what is two and two?", "four")).encode()
    lines = [mutated(good, random) for _ in range(1000)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    skipping = prepared(str(path), on_bad_row="skip")
    (counts,) = skipping.report.sources
    kept = {example.where for example in skipping.train}
    blank = sum(not line.strip() for line in lines)
    assert counts.read == 1000 - blank
    assert counts.read == counts.bad + counts.overlength + counts.untrained + counts.kept
    assert counts.bad > 300
    refused = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        alone = tmp_path / "one.jsonl"
        alone.write_bytes(b"\n" * (number - 1) + line)
        if f"{path}:{number}" in kept:
            assert len(prepared(str(alone)).train) == 1
            continue
        refused += 1
        with pytest.raises(DataError) as caught:
            prepared(str(alone), format="messages")
        assert {problem.where for problem in caught.value.problems} == {f"{alone}:{number}"}
        assert all("Traceback" not in str(problem) for problem in caught.value.problems)
    assert refused == counts.bad


def test_weights_do_not_repeat_rows(prepared: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(f"q{n}", "a") for n in range(5)])
    data = prepared([{"path": path, "weight": 3.0}, {"path": path, "weight": 0.5}])
    assert len(data.train) == 10
    assert all(before.stop == after.start for before, after in pairwise(data.train_sources))

"""A file of prompts: what is refused before anything is answered, and the same answers however often it is stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraft import api
from loraft.errors import DataError, Interrupted, OutOfMemoryError
from loraft.evaluation.open_model import RequestedModel
from loraft.events import Event, Note, Progress
from loraft.inference import batch_generate as batch
from loraft.inference.batch_generate import AnsweredFile, BatchPrompt, answer_questions, read_questions
from loraft.inference.engine import stream
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import Session, open_session
from loraft.rows.formats import Message
from tests.inference.voices import adapter_in, base_in
from tests.training.building import tiny_config, write_rows

WORDS = (
    "the order is late",
    "so",
    "the customer said that the answer is in the text",
    "user",
    "and the system is in order",
)
OPTIONS = GenerationRequest(max_new_tokens=10, temperature=0.8, seed=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    adapter_in(folder / "a", base_in(folder / "base"), system_prompt="Be brief.")
    adapter_in(folder / "b", folder / "base", seed=5)
    return folder


@pytest.fixture(scope="module")
def session(place: Path) -> Session:
    return open_session(ModelRequest(str(place / "a")))


def asked(folder: Path, count: int = 23) -> Path:
    """Prompts and conversations of different lengths, some with a system prompt of their own, one with none."""
    rows: list[dict[str, object]] = []
    for number in range(count):
        text = f"{WORDS[number % 5]} {number}"
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
        row: dict[str, object] = (
            {"messages": [*turns, {"role": "user", "content": text}]} if number % 4 == 1 else {"prompt": text}
        )
        rows.append({"id": number, **row, **({"system": "" if number == 6 else "Be kind."} if number % 3 == 0 else {})})
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(session: Session, folder: Path, name: str, **options: object) -> AnsweredFile:
    settings: dict[str, object] = {"options": OPTIONS, "batch_size": 2, "observer": lambda _: None} | options
    return answer_questions(session, read_questions(asked(folder)), folder / name, **settings)  # type: ignore[arg-type]


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_c35_each_row_is_answered_as_it_would_be_alone(session: Session, tmp_path: Path) -> None:
    """Greedy and sampled: row n draws from seed + n, whatever rows are beside it."""
    for options in (OPTIONS, GenerationRequest(max_new_tokens=10)):
        result = run(session, tmp_path, "o.jsonl", options=options, overwrite=True)
        voice = session.voice()
        for number, (row, question) in enumerate(
            zip(rows_of(tmp_path / "o.jsonl"), read_questions(asked(tmp_path)), strict=True)
        ):
            ids = voice.renderer.prompt_ids(question.to(voice, None))
            settings = voice.settings(replace(options, seed=options.seed and options.seed + number))
            alone = stream(session.model, voice.tokenizer, ids, **settings).completion
            assert (row["completion"], row["finish_reason"]) == (alone.completion, alone.finish_reason)
            assert {key: row[key] for key in question.row.values} == question.row.values
        assert (result.rows, result.held) == (23, 0)
        assert result.cut == sum(row["finish_reason"] == "length" for row in rows_of(tmp_path / "o.jsonl"))


@pytest.mark.slow
def test_each_row_has_its_own_system_prompt_or_the_trained_one(session: Session, tmp_path: Path) -> None:
    questions, voice = read_questions(asked(tmp_path)), session.voice()
    systems = [[m.content for m in question.to(voice, None) if m.role == "system"] for question in questions[:7]]
    assert systems == [["Be kind."], ["Be brief."], ["Be brief."], ["Be kind."], ["Be brief."], ["Be brief."], []]
    assert questions[1].to(voice, "Be loud.")[0].content == "Be loud."


def test_a_row_is_asked_with_its_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    row = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools}
    (tmp_path / "asked.jsonl").write_text(json.dumps(row))
    (question,) = read_questions(tmp_path / "asked.jsonl")
    assert question.tools == tuple(tools)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.77, 0.999])
def test_a_run_that_was_cut_short_ends_with_the_same_bytes(session: Session, tmp_path: Path, share: float) -> None:
    """The window that was cut is answered whole again, so each row has the neighbours that it would have had."""
    run(session, tmp_path, "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "o.jsonl").write_bytes(whole[: int(len(whole) * share)])
    held = whole[: int(len(whole) * share)].count(b"\n")
    told: list[Event] = []
    result = run(session, tmp_path, "o.jsonl", observer=told.append)
    assert (tmp_path / "o.jsonl").read_bytes() == whole
    assert result.held == held
    progress = [event for event in told if isinstance(event, Progress)]
    assert progress[-1] == Progress("rows answered", 23, 23)
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    assert progress[0].done >= held


@pytest.mark.slow
def test_a_finished_file_is_left_as_it_is(session: Session, tmp_path: Path) -> None:
    run(session, tmp_path, "o.jsonl")
    before = (tmp_path / "o.jsonl").read_bytes()
    result = run(session, tmp_path, "o.jsonl")
    assert (result.held, result.tokens, result.as_dict()["tokens_per_second"]) == (23, 0, None)
    assert (tmp_path / "o.jsonl").read_bytes() == before


@pytest.mark.slow
def test_another_number_of_rows_at_a_time_goes_on_with_it(session: Session, tmp_path: Path) -> None:
    run(session, tmp_path, "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "o.jsonl").write_bytes(whole[: len(whole) // 2])
    run(session, tmp_path, "o.jsonl", batch_size=7)
    assert [row["id"] for row in rows_of(tmp_path / "o.jsonl")] == list(range(23))
    assert rows_of(tmp_path / "o.jsonl") == rows_of(tmp_path / "whole.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [GenerationRequest(max_new_tokens=10, temperature=0.8, seed=4), GenerationRequest(max_new_tokens=9)]
)
def test_other_options_do_not_go_on_with_it(session: Session, tmp_path: Path, options: GenerationRequest) -> None:
    run(session, tmp_path, "o.jsonl")
    with pytest.raises(DataError, match="another model, or with other settings"):
        run(session, tmp_path, "o.jsonl", options=options)


@pytest.mark.slow
def test_another_adapter_or_another_storage_does_not_go_on_with_it(
    place: Path, session: Session, tmp_path: Path
) -> None:
    run(session, tmp_path, "o.jsonl")
    for other in (
        open_session(ModelRequest(str(place / "b"))),
        open_session(ModelRequest(str(place / "a"), dtype="bfloat16")),
        open_session(ModelRequest(str(place / "a"), merge=True)),
    ):
        with pytest.raises(DataError, match="another model, or with other settings"):
            run(other, tmp_path, "o.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt(), Interrupted, r"stopped: 16 of 23 rows are in(.|\n)*The same command goes on"),
        (torch.OutOfMemoryError(), OutOfMemoryError, r"ran out of memory with 2 rows at a time(.|\n)*`batch_size`"),
    ],
)
def test_what_ends_it_early_is_told_and_the_windows_before_stand(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[Exception],
    message: str,
) -> None:
    run(session, tmp_path, "whole.jsonl")
    complete, calls = batch.complete_batch, []

    def ends(*arguments: object, **options: object) -> object:
        calls.append(options)
        if len(calls) == 2:
            raise error
        return complete(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(batch, "complete_batch", ends)
        with pytest.raises(raised, match=message):
            run(session, tmp_path, "o.jsonl")
    assert rows_of(tmp_path / "o.jsonl") == rows_of(tmp_path / "whole.jsonl")[:16]
    run(session, tmp_path, "o.jsonl")
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


BAD = [
    ('{"prompt": null}', "3 prompt: must be text; found nothing"),
    ('{"prompt": "  "}', "3 prompt: is empty"),
    (
        '{"question": "x"}',
        "3: needs one of prompt, messages, .* and translation; it has question",
    ),
    ('{"prompt": "x", "messages": []}', "3: needs one of .* it has prompt and messages"),
    ('{"messages": []}', "3 messages: is an empty list"),
    ('{"messages": [{"role": "bot", "content": "x"}]}', r"3 messages\[0\].role"),
    (
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        r"3 messages\[1\]: is the",
    ),
    ('{"prompt": "x", "system": 3}', "3 system: must be text or absent"),
    (
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}], "system": "t"}',
        "another system prompt",
    ),
    ('{"prompt": "x", "completion": "y"}', "3 completion: an answer adds this field"),
    ('{"prompt": "\\ud800"}', "3 prompt: holds half a character"),
    ('{"prompt": ', "3: is not JSON"),
    ("[1]", "3: is not a JSON object"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_c46_a_bad_row_is_named_with_file_line_and_field(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "fine"}}\n\n{row}\n{{"prompt": 7}}\n')
    with pytest.raises(DataError, match=message) as refused:
        read_questions(tmp_path / "p.jsonl")
    assert any("p.jsonl:4 prompt" in str(problem) for problem in refused.value.problems), "every bad row is named"


@pytest.mark.parametrize(
    ("name", "message"), [("none.jsonl", "there is no such file"), ("none/none", "is no file of rows")]
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"prompts: {message}"):
        read_questions(Path(name))


def test_of_a_plain_text_each_row_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Why?\nHow?\n")
    notes: list[Event] = []
    questions = read_questions(tmp_path / "p.txt", observer=notes.append)
    assert [question.messages for question in questions] == [(Message("user", "Why?"),), (Message("user", "How?"),)]
    assert [question.row.values for question in questions] == [{"text": "Why?"}, {"text": "How?"}]
    assert len(notes) == 1


def test_columns_at_fault_are_one_mistake_and_an_option_names_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_text("id,question,system\n1,Why?,Be kind.\n2,How?,Be kind.\n")
    for column, missing in ((None, "prompt, messages, .*, source or translation"), ("Frage", "'Frage'")):
        with pytest.raises(DataError, match=f"no column {missing}; the columns are id, question, system") as caught:
            read_questions(path, column=column)
        assert [problem.parameter for problem in caught.value.problems] == ["prompts"]
        assert "`prompt_column='NAME'`" in str(caught.value)
    questions = read_questions(path, column="question")
    assert questions[1].messages == (Message("system", "Be kind."), Message("user", "How?"))


def test_tools_and_the_system_prompt_are_called_as_in_training(tmp_path: Path) -> None:
    path, tool = tmp_path / "p.jsonl", {"type": "function", "function": {"name": "weather"}}
    turns = [{"role": "user", "content": "Rain?"}]
    rows = [{"messages": turns, "meta": {"tools": [tool]}, "kind": "Be kind."}, {"messages": turns, "meta": {}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned = {"messages": "chat", "tools": "meta.tools", "system": "kind"}
    first, second = read_questions(path, learned=learned)
    assert first.tools == (tool,)
    assert first.messages == (Message("system", "Be kind."), Message("user", "Rain?"))
    assert (second.tools, second.messages) == ((), (Message("user", "Rain?"),))
    path.write_text(json.dumps({"messages": turns, "tools": [tool], "system": "Be kind."}) + "\n")
    assert read_questions(path, learned=learned)[0].tools == (tool,), "a file of other columns"


@pytest.mark.parametrize(
    ("row", "learned", "column"),
    [
        ({"instruction": "Add.", "input": "2 2"}, {}, None),
        ({"instruction": "Add.", "input": "2 2", "source": "a book"}, {}, "instruction"),
        ({"asked": "Add.", "context": "2 2"}, {"instruction": "asked", "input": "context"}, None),
        ({"asked": "Add.", "context": "2 2"}, {"instruction": "asked", "input": "context"}, "asked"),
        ({"text": "Add.\n\n2 2"}, {"prompt": "text"}, None),
        ({"translation": {"en": "Add.\n\n2 2"}}, {"source": "translation.en"}, None),
        ({"talk": [{"role": "user", "content": "Add.\n\n2 2"}], "text": "x"}, {"messages": "talk"}, None),
        ({"prompt": "Add.\n\n2 2", "asked": "x"}, {"instruction": "asked"}, None),
    ],
)
def test_what_asks_is_read_as_in_training(
    tmp_path: Path, row: dict[str, object], learned: dict[str, str], column: str | None
) -> None:
    write_rows(tmp_path / "p.jsonl", [row])
    (question,) = read_questions(tmp_path / "p.jsonl", learned=learned, column=column)
    assert question.messages == (Message("user", "Add.\n\n2 2"),)


def test_tools_stand_beside_a_prompt_as_beside_turns(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    write_rows(tmp_path / "p.jsonl", [{"prompt": "Rain?", "tools": [tool]}, {"source": "Rain?", "tools": [tool]}])
    assert [question.tools for question in read_questions(tmp_path / "p.jsonl")] == [(tool,), ()]


def test_a_file_of_prompts_is_read_by_the_columns_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And by none where a base lies beside some other config."""
    config = tiny_config(tmp_path, training__max_steps=1, data__columns={"tools": "meta.tools"})
    api.train(config)
    (tmp_path / "config.yaml").write_text("no: config\n")
    write_rows(tmp_path / "p.jsonl", [{"messages": [{"role": "user", "content": "x"}], "meta": {"tools": [{"a": 1}]}}])
    questions: list[BatchPrompt] = []
    monkeypatch.setattr("loraft.api.answers.answer_questions", lambda _, read, *__, **___: questions.extend(read))
    for target in ("run", "model"):
        api.answer_file(str(tmp_path / target), prompts=tmp_path / "p.jsonl", output=tmp_path / "o.jsonl")
    assert [question.tools for question in questions] == [({"a": 1},), ()]


def test_columns_that_only_a_run_could_explain_are_told_where_none_is_near(session: Session, tmp_path: Path) -> None:
    """An adapter that was copied from its run, and rows whose tools it called otherwise."""
    write_rows(tmp_path / "p.jsonl", [{"prompt": "x", "system": "Be kind.", "input": "y", "meta": {"tools": []}}])
    for learned, told in ((None, ["input, meta"]), ({}, [])):
        notes: list[Event] = []
        read_questions(tmp_path / "p.jsonl", learned=learned, observer=notes.append)
        assert [note.text.rpartition(" from ")[2] for note in notes if isinstance(note, Note)] == told
    adapter, base = session.voice().folder, session.loaded.folder
    assert RequestedModel(str(adapter)).learned_columns is None
    assert RequestedModel(str(base)).learned_columns == {}


def test_many_rows_that_are_bad_in_one_way_are_one_problem(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": 3}\n' * 500)
    with pytest.raises(DataError) as caught:
        read_questions(tmp_path / "p.jsonl")
    (problem,) = caught.value.problems
    assert problem.where == f"{tmp_path}/p.jsonl:1"
    assert "so in 500 rows" in problem.message


def test_sharegpt_and_csv_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"conversations": [{"from": "human", "value": "x"}]}\n')
    (tmp_path / "p.csv").write_text("prompt,system\nx,\ny,Be kind.\n")
    assert [m.role for m in read_questions(tmp_path / "p.jsonl")[0].messages] == ["user"]
    assert [len(question.messages) for question in read_questions(tmp_path / "p.csv")] == [2, 2]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_row_longer_than_the_models_positions_is_named_before_anything_is_written(
    model_type: str, tmp_path: Path
) -> None:
    base = base_in(tmp_path / "base", model_type, max_position_embeddings=48)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n" + json.dumps({"prompt": "late " * 60}) + "\n")
    session = open_session(ModelRequest(str(base)))
    with pytest.raises(DataError, match=r"p.jsonl:2: has \d+ tokens, and this model has learned 48 positions"):
        answer_questions(
            session, read_questions(tmp_path / "p.jsonl"), tmp_path / "o", options=OPTIONS, observer=lambda _: None
        )
    assert not (tmp_path / "o").exists()


def test_an_answer_that_ends_with_the_models_positions_is_not_cut_by_the_limit(tmp_path: Path) -> None:
    session = open_session(ModelRequest(str(base_in(tmp_path / "base", "gpt2", max_position_embeddings=48))))
    (tmp_path / "asked.jsonl").write_text('{"prompt": "x"}\n')
    for most, counts in ((200, (1, 1)), (2, (1, 0))):
        options = GenerationRequest(max_new_tokens=most, temperature=0)
        questions = read_questions(tmp_path / "asked.jsonl")
        done = answer_questions(session, questions, tmp_path / f"{most}", options=options, observer=lambda _: None)
        assert (done.cut, done.cut_by_positions) == counts


def test_a_row_that_the_template_refuses_is_named(place: Path, tmp_path: Path) -> None:
    strict = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}{{ messages[0].content }}"
    adapter_in(tmp_path / "strict", place / "base", chat_template=strict)
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"prompt": "no"}\n')
    with pytest.raises(DataError, match=r"p.jsonl:2.*not this"):
        answer_questions(
            open_session(ModelRequest(str(tmp_path / "strict"))),
            read_questions(tmp_path / "p.jsonl"),
            tmp_path / "o",
            options=OPTIONS,
            observer=lambda _: None,
        )


def test_a_language_that_a_row_lacks_is_told_by_the_option_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"translation": {"de": "hallo"}}\n')
    with pytest.raises(DataError, match=r"has no text in en \(data.source_lang\); it has de"):
        read_questions(path, lambda: "en")

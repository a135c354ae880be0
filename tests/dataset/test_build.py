"""From files to examples: every row is kept, or counted with its reason."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData, prepare
from loraft.dataset.source_rows import read_sources, shortened
from loraft.errors import DataError, Problem
from loraft.rows.raw_rows import read_rows
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer."""
    return tiny_tokenizer()


def row(question: str = "hello", answer: str = "world") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def prepared(tokenizer: PreTrainedTokenizerFast, train: Any, **data: Any) -> PreparedData:
    values = {"model": {"name_or_path": "x"}, "data": {"train": train, "eval": None, **data}}
    return prepare(RunConfig.model_validate(values), tokenizer)


def test_every_row_is_kept(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data = prepared(tokenizer, write(tmp_path / "a.jsonl", [row(f"q{i}") for i in range(10)]))
    assert len(data.train) == data.report.train_rows == 10
    assert data.train[3].where == f"{tmp_path / 'a.jsonl'}:4"
    assert data.report.trained_tokens == sum(example.trained for example in data.train)
    assert "⟦world<|im_end|>⟧" in data.report.samples[0]["text"]
    text = prepared(tokenizer, write(tmp_path / "b.jsonl", [{"text": "the sea"}]))
    assert text.report.samples[0]["text"] == "t⟦he sea<|im_end|>⟧", "nothing stands before the first token"


def test_a_source_of_which_no_row_is_drawn_is_told(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    many, one = write(tmp_path / "a.jsonl", [row(f"q{i}") for i in range(10)]), write(tmp_path / "b.jsonl", [row()])
    found = prepared(tokenizer, [{"path": many, "weight": 0.4}, {"path": one, "weight": 0.4}]).report.notes
    assert [note for note in found if "draws" in note] == [f"{one}: weight 0.4 of 1 row draws none, in any epoch"]


def test_columns_that_nothing_is_read_from_are_told_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Rows of a classifier under a config that learns text: their labels would be lost without a word."""
    labelled = write(tmp_path / "a.jsonl", [{"text": f"{n} late", "label": "fine", "id": n} for n in range(4)])
    held = write(tmp_path / "b.jsonl", [{"text": "late", "label": "fine"}])
    notes = [note for note in prepared(tokenizer, labelled, eval=held).report.notes if "not read" in note]
    assert notes == [
        f"not read in {labelled} and {held}, as rows of text: label, id; task seq_cls reads a text with its label"
    ]
    answered = write(tmp_path / "g.jsonl", [{"text": "Add 1 and 2.", "solution": "1 + 2"}])
    (note,) = prepared(tokenizer, answered).report.notes
    columns = {"instruction": "text", "output": "solution"}
    assert "data.format: alpaca and data.columns: {instruction: text, output: solution}" in note
    assert not prepared(tokenizer, answered, format="alpaca", columns=columns).report.notes
    chats = write(tmp_path / "c.jsonl", [{**row(), "topic": "Kindness.", "tools": None}])
    assert f"not read in {chats}, as rows of messages: topic" in prepared(tokenizer, chats).report.notes
    called = [{"role": "assistant", "content": "Late.", "function_call": {"name": "f"}, "refusal": None, "id": 7}]
    calling = write(tmp_path / "f.jsonl", [{"messages": [*row()["messages"], *called], "lang": "en"}])
    note = f"not read in {calling}, as rows of messages: lang, messages[].function_call"
    assert note in prepared(tokenizer, calling).report.notes
    (tmp_path / "pandas.csv").write_text(",text\n0,late\n")
    of_pandas = str(tmp_path / "pandas.csv")  # its index has no name
    assert prepared(tokenizer, of_pandas).report.notes == (f"not read in {of_pandas}, as rows of text: (no name)",)
    told = write(tmp_path / "e.jsonl", [{"instruction": "Add.", "output": "4", "system": "Be brief."}])
    data = {"train": told, "format": "alpaca", "eval": None}
    pairs = RunConfig.model_validate({"model": {"name_or_path": "x"}, "task": "seq2seq_lm", "data": data})
    assert [source.unread for source in read_sources(pairs).train] == [("system",)]
    assert not prepared(tokenizer, told).report.notes
    renamed = write(tmp_path / "d.jsonl", [{"body": "late"}])
    assert not prepared(tokenizer, renamed, columns={"text": "body"}).report.notes


def test_c4_rows_whose_answer_was_cut_off_are_counted_and_left_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """C4: the question alone fills max_length."""
    path = write(tmp_path / "a.jsonl", [row(), row("x" * 200)])
    data = prepared(tokenizer, path, max_length=40, on_overlength="truncate")
    counts = data.report.sources[0]
    assert (counts.read, counts.overlength, counts.untrained, counts.kept) == (2, 1, 1, 1)
    assert any("1 row has no trained token: left out" in note for note in data.report.notes)


@pytest.mark.parametrize(("choice", "keys"), [("truncate", "max_length and data.train_on"), ("drop", "max_length")])
def test_c4_when_no_row_is_left_it_is_an_error_before_the_first_step(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, choice: str, keys: str
) -> None:
    path = write(tmp_path / "a.jsonl", [row("x" * 200)])
    with pytest.raises(DataError, match="no row is left") as caught:
        prepared(tokenizer, path, max_length=40, on_overlength=choice)
    assert caught.value.problems[0].remedy == f"look at data.{keys}"


@pytest.mark.parametrize("choice", ["drop", "truncate", "split", "error"])
def test_c6_a_longer_row_is_treated_as_the_config_says_and_no_token_is_invented(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, choice: str
) -> None:
    """C6: whatever is done, the pieces are the row's own tokens in their order, and it is counted."""
    path = write(tmp_path / "a.jsonl", [{"text": "the order " * 40}, {"text": "late"}])
    if choice == "error":
        with pytest.raises(DataError, match=r"a\.jsonl:1: has \d+ tokens, more than data\.max_length 30"):
            prepared(tokenizer, path, max_length=30, on_overlength=choice)
        return
    whole = prepared(tokenizer, path).train[0]
    data = prepared(tokenizer, path, max_length=30, on_overlength=choice)
    counts = data.report.sources[0]
    assert counts.overlength == 1
    pieces = [example for example in data.train if example.where.endswith(":1")]
    joined = [token for piece in pieces for token in piece.input_ids]
    expected = {"drop": [], "truncate": whole.input_ids[:30], "split": whole.input_ids}[choice]
    assert joined == expected
    assert all(len(example.input_ids) <= 30 for example in data.train)


def test_auto_splits_text_and_drops_conversations(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    text = prepared(tokenizer, write(tmp_path / "t.jsonl", [{"text": "late " * 100}]), max_length=30)
    assert text.report.sources[0].done == "split"
    chat = prepared(tokenizer, write(tmp_path / "c.jsonl", [row(), row("y" * 300)]), max_length=40)
    assert (chat.report.sources[0].done, chat.report.train_rows) == ("dropped", 1)
    assert any("would keep 99 %" in note for note in chat.report.notes)


def test_a_bad_row_is_an_error_with_its_line_and_field(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(), "{oops", {"messages": [{"role": "user", "content": 7}]}, row()])
    with pytest.raises(DataError) as error:
        prepared(tokenizer, path)
    found = [(problem.where, problem.key) for problem in error.value.problems]
    assert found == [(f"{path}:2", None), (f"{path}:3", "messages[0].content")]
    unread, wrong = (str(problem.remedy) for problem in error.value.problems)
    assert "with double quotes" in unread
    assert wrong == "Mend it; or data.on_bad_row: skip leaves bad rows out and counts them."


def test_bad_rows_are_skipped_and_counted_when_asked(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(), "{oops", {"messages": []}, row()])
    data = prepared(tokenizer, path, on_bad_row="skip")
    assert (data.report.sources[0].bad, data.report.sources[0].kept) == (2, 2)
    assert any("2 bad rows are skipped, the first at" in note for note in data.report.notes)
    path = write(tmp_path / "b.jsonl", [row(), {"messages": []}])
    told = prepared(tokenizer, path, on_bad_row="skip").report.notes
    assert any(f"{path}:2 messages: " in note for note in told), "the field is named too"


@pytest.mark.slow
def test_c46_a_thousand_mutated_rows_end_in_no_traceback(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """C46: errors have file and line, and skipping counts exactly what is not kept."""
    generator = random.Random(7)
    good = json.dumps(row("how are you", "fine, thanks"))
    junk: list[Any] = [None, 3, True, [], {}, "", "\x00", "\ud800", [1], {"role": 1}, "x" * 50_000, -1e400]

    def mutated() -> bytes:
        kind = generator.randrange(5)
        if kind == 0:
            value = row()
            value["messages"][generator.randrange(2)][generator.choice(["role", "content", "train"])] = (
                generator.choice(junk)
            )
            return json.dumps(value).encode()
        if kind == 1:
            return json.dumps(generator.choice([*junk, {"messages": generator.choice(junk)}])).encode()
        raw = bytearray(good.encode())
        for _ in range(generator.randint(1, 4)):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
        return bytes(raw).replace(b"\n", b" ").replace(b"\r", b" ")

    lines = [mutated() for _ in range(1000)]
    path = tmp_path / "mutated.jsonl"
    path.write_bytes(b"\n".join([good.encode(), *lines]) + b"\n")
    data = prepared(tokenizer, str(path), on_bad_row="skip", max_length=100_000)
    counts = data.report.sources[0]
    assert counts.read == 1 + sum(bool(line.strip()) for line in lines)
    assert counts.read == counts.kept + counts.bad + counts.untrained
    with pytest.raises(DataError) as error:
        prepared(tokenizer, str(path), max_length=100_000)
    assert all(problem.where is None or problem.where.startswith(str(path)) for problem in error.value.problems)


def test_names_of_columns_that_the_format_does_not_read_are_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """With data.format they passed unseen, and what they were to say was not learned."""
    answered = write(tmp_path / "a.jsonl", [{"text": "Add 1 and 2.", "code": "1 + 2"}])
    notes = prepared(tokenizer, answered, format="text", columns={"output": "code"}).report.notes
    assert f"{answered}: data.columns: output is not read of rows of text" in notes
    with pytest.raises(DataError, match="foo is no column of ours") as caught:
        prepared(tokenizer, answered, format="text", columns={"foo": "code"})
    assert caught.value.problems[0].key == "data.columns"


def test_unknown_columns_name_what_was_found_and_what_would_fit(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q", "reply": "r"}])
    with pytest.raises(DataError) as error:
        prepared(tokenizer, path)
    assert "question, reply" in str(error.value)
    assert "prompt_completion: prompt, completion" in str(error.value)
    mapped = prepared(tokenizer, path, columns={"prompt": "question", "completion": "reply"})
    assert mapped.report.sources[0].format == "prompt_completion"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        ({"instruction": "do", "input": "this", "output": "done"}, "alpaca"),
        ({"prompt": "p", "completion": "c"}, "prompt_completion"),
        ({"text": "t"}, "text"),
        (row(), "messages"),
    ],
)
def test_formats_are_recognised_by_their_columns(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, values: dict[str, Any], expected: str
) -> None:
    assert prepared(tokenizer, write(tmp_path / "a.jsonl", [values])).report.sources[0].format == expected


def test_every_file_type_gives_the_same_rows(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": f"q {i}", "completion": f'a, "{i}"\nb'} for i in range(3)]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    quoted = "".join(f'"{r["prompt"]}","{r["completion"].replace(chr(34), chr(34) * 2)}"\n' for r in rows)
    (tmp_path / "a.csv").write_text("prompt,completion\n" + quoted)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [prepared(tokenizer, str(tmp_path / f"a.{end}")) for end in ("jsonl", "json", "csv", "parquet")]
    assert len({data.fingerprint for data in found}) == 1
    # A quoted cell goes over two lines: the third row begins in line 6.
    assert [example.where.rpartition(":")[2] for example in found[2].train] == ["2", "4", "6"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.doc", "x", "files of type .doc are not read"),
        ("a.json", '{"data": [1]}', "the rows seem to be in 'data'"),
        ("a.json", '{"messages": [{"role": "user", "content": "a"}]}', r"it holds one object\n.*Write \[ before"),
        ("a.jsonl", "a\0b", r"holds a NUL byte\n.*UTF-16"),
        ("a.parquet", "nonsense", "cannot be read as Parquet"),
        ("a.csv", "prompt,completion\na\n", "has no cell for completion"),
    ],
)
def test_files_that_cannot_be_used(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(tokenizer, str(tmp_path / name))


def test_a_missing_file_names_the_nearest(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [row()])
    with pytest.raises(DataError, match=r"Did you mean .*train\.jsonl"):
        prepared(tokenizer, str(tmp_path / "tain.jsonl"))


def test_held_out_rows_are_not_trained_on(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"the order number {i} " * 20} for i in range(20)])
    data = prepared(tokenizer, path, eval=0.2, max_length=30)
    held = {example.where for example in data.eval}
    assert len(held) == 4
    assert not held & {example.where for example in data.train}
    assert prepared(tokenizer, path, eval=0.2, max_length=30).fingerprint == data.fingerprint
    with pytest.raises(DataError, match="one row cannot be shared"):
        prepared(tokenizer, write(tmp_path / "one.jsonl", [row()]), eval=0.5)


def test_garbage_is_looked_for_again_afterwards(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Among the tokens of many rows the looking takes a sixth of the time."""
    prepared(tokenizer, write(tmp_path / "a.jsonl", [row()] * 3))
    assert gc.isenabled()
    with pytest.raises(DataError):
        prepared(tokenizer, "absent.jsonl")
    assert gc.isenabled()


def test_several_sources_keep_their_weights(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", [row()] * 3), write(tmp_path / "b.jsonl", [{"text": "x y"}] * 2)
    data = prepared(tokenizer, [first, {"path": second, "weight": 0.5}])
    assert [(span.start, span.stop, span.weight) for span in data.train_sources] == [(0, 3, 1.0), (3, 5, 0.5)]
    assert [counts.format for counts in data.report.sources] == ["messages", "text"]


def test_problems_of_all_sources_are_found_at_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [row() | {"messages": [{"role": name}]} for name in map(chr, range(97, 119))])
    with pytest.raises(DataError) as error:
        prepared(tokenizer, [str(tmp_path / "absent.jsonl"), bad])
    missing, bad_rows = error.value.problems
    assert missing.where == str(tmp_path / "absent.jsonl")
    assert bad_rows.where == f"{bad}:1"
    assert "so in 22 rows" in bad_rows.message


def test_a_system_prompt_that_all_rows_share_is_kept(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def with_system(prompt: str) -> dict[str, Any]:
        return {"messages": [{"role": "system", "content": prompt}, *row()["messages"]]}

    same = prepared(tokenizer, write(tmp_path / "a.jsonl", [with_system("be brief")] * 2))
    assert same.renderer.system_prompt == "be brief"
    other = prepared(tokenizer, write(tmp_path / "b.jsonl", [with_system("be brief"), row()]))
    assert other.renderer.system_prompt is None


def test_lone_surrogates_are_refused_by_field(tmp_path: Path) -> None:
    from loraft.config.sections import DataSource
    from loraft.rows.formats import to_record

    path = write(tmp_path / "a.jsonl", ['{"text": "\\ud800"}'])
    read = read_rows(DataSource(path=path))
    with pytest.raises(DataError, match="half a character"):
        to_record(read.rows[0], "text", {})


BAD_ROWS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str, str]] = [
    ("seq_cls", {"text": "x", "label": "a"}, {"text": "x", "label": ["a", "b"]}, {}, "label", "Write one row a label"),
    ("seq_cls", {"text": "x", "label": "a"}, {"text": "x", "label": 0.5}, {}, "label", "regression"),
    ("seq_cls", {"text": "x", "label": "a"}, {"text": "x", "label": "aa"}, {}, "label", "They are a, b."),
    (
        "seq2seq_lm", {"translation": {"en": "yes", "fr": "oui"}}, {"translation": {"en": "yes", "de": "ja"}},
        {"source_lang": "en", "target_lang": "fr"}, "translation", "",
    ),
    ("seq2seq_lm", {"source": "yes", "target": "oui"}, {"source": "yes", "target": " "}, {}, "target", ""),
]  # fmt: skip


@pytest.mark.parametrize(("task", "good", "bad", "options", "field", "remedy"), BAD_ROWS)
def test_c46_bad_rows_of_each_task_have_line_field_and_remedy(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, task: str, good: dict[str, Any], bad: dict[str, Any],
    options: dict[str, Any], field: str, remedy: str,
) -> None:  # fmt: skip
    """Of train and of eval alike; skipped, they are counted."""
    others = [{**good, "label": "b"}] if "label" in good else [good]
    train = write(tmp_path / "train.jsonl", [good, *others])
    held = write(tmp_path / "eval.jsonl", [good, bad])

    def run(**more: Any) -> PreparedData:
        data = {"train": train, "eval": held, **options, **more}
        config = {"task": task, "model": {"name_or_path": "x"}, "data": data}
        return prepare(RunConfig.model_validate(config), tokenizer)

    with pytest.raises(DataError) as caught:
        run()
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == (f"{held}:2", field)
    assert remedy in (problem.remedy or "")
    data = run(on_bad_row="skip")
    assert (data.report.sources[1].bad, len(data.eval)) == (1, 1)


def test_languages_that_are_not_set_are_asked_for_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"translation": {"en": "yes", "fr": "oui"}}] * 5)
    data = {"train": path, "eval": None}
    config = RunConfig.model_validate({"task": "seq2seq_lm", "model": {"name_or_path": "x"}, "data": data})
    with pytest.raises(DataError) as caught:
        prepare(config, tokenizer)
    (problem,) = caught.value.problems
    assert problem.key == "data.source_lang"


def test_a_row_that_moves_from_training_to_evaluation_makes_another_fingerprint(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    given = [row(f"question {n}", f"answer {n}") for n in range(4)]
    marks = [
        prepared(tokenizer, write(tmp_path / f"{n}.jsonl", given[:n]), eval=write(tmp_path / f"e{n}.jsonl", given[n:]))
        for n in (2, 3)
    ]
    assert [[e.input_ids for e in (*each.train, *each.eval)] for each in marks[:1]] == [
        [e.input_ids for e in (*marks[1].train, *marks[1].eval)]
    ]
    assert marks[0].fingerprint != marks[1].fingerprint


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_target_length": 6}, "1 of 5 rows are dropped, for their target is longer than data.max_target_length 6 "
                                   "(10 would keep 99 % of the training rows)"),
        ({"max_length": 8}, "1 of 5 rows are dropped, for their target is longer than data.max_length 8 (10 would"),
        ({"max_length": 3, "max_target_length": 99}, "for their source is longer than data.max_length 3 (4 would"),
        ({"max_length": 3}, "for their source is longer than data.max_length 3 (4 would keep 99 % of the training rows)"
                            " or their target is longer than data.max_length 3 (10 would"),
    ],
)  # fmt: skip
def test_pairs_that_are_too_long_are_told_by_what_is_too_long(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, settings: dict[str, int], reason: str
) -> None:
    pairs = [{"source": "a" * count, "target": "b" * (9 if count == 4 else count)} for count in (1, 2, 3, 4, 2)]
    data = {"train": write(tmp_path / "a.jsonl", pairs), "eval": None, **settings}
    config = RunConfig.model_validate({"task": "seq2seq_lm", "model": {"name_or_path": "x"}, "data": data})
    (note,) = (note for note in prepare(config, tokenizer).report.notes if "99 %" in note)
    assert reason in note


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_what_is_wrong_in_every_row_is_told_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, on_bad_row: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"translation": {"en": "yes", "fr": "oui"}}] * 50)
    data = {"train": path, "eval": None, "source_lang": "de", "target_lang": "fr", "on_bad_row": on_bad_row}
    config = RunConfig.model_validate({"task": "seq2seq_lm", "model": {"name_or_path": "x"}, "data": data})
    with pytest.raises(DataError) as caught:
        prepare(config, tokenizer)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:1"
    assert problem.message.endswith("it has en, fr (as in all 50 rows)")


def test_one_failure_of_many_rows_is_one_problem_with_its_count() -> None:
    missing = [Problem("is missing", f"a.jsonl:{line}", "text", "Mend it.") for line in range(1, 5001)]
    long = [Problem(f"has {900 + line:,} tokens", f"a.jsonl:{line}") for line in range(10)]
    other = [Problem("is missing", "b.jsonl:1", "text", "Mend it.")]
    turns = [Problem("is empty", f"a.jsonl:{line}", f"messages[{line}].content") for line in range(4)]
    found = shortened([*missing, *long, *other, *turns])
    assert [(each.where, each.key, each.message) for each in found] == [
        ("a.jsonl:1", "text", "is missing (so in 5,000 rows, this the first)"),
        ("a.jsonl:0", None, "has 900 tokens (so in 10 rows, this the first)"),
        ("b.jsonl:1", "text", "is missing"),
        ("a.jsonl:0", "messages[0].content", "is empty (so in 4 rows, this the first)"),
    ]
    assert shortened(missing[:3]) == missing[:3]


@pytest.mark.parametrize(("where", "hedges"), [("train", True), ("eval", False)])
def test_no_length_is_offered_that_would_not_suffice(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, where: str, hedges: bool
) -> None:
    """A very long row is not counted to its end: of training rows the length that keeps most is a lower bound then."""
    rows = {"train": [row() for _ in range(10)], "eval": [row()]}
    rows[where].append(row(answer="late order " * 30_000))
    for name, of in rows.items():
        write(tmp_path / f"{name}.jsonl", of)
    data = {"eval": [{"path": str(tmp_path / "eval.jsonl")}], "max_length": 64, "on_overlength": "drop"}
    found = prepared(tokenizer, str(tmp_path / "train.jsonl"), **data)
    (said,) = [note for note in found.report.notes if "would keep 99 %" in note]
    assert ("more than " in said) == hedges

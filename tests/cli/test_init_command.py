"""`loraft init`: every task, method and format gives a config that loads, and one that `check` passes."""

from __future__ import annotations

import csv
import json
import re
from itertools import product
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest
import typer
from openpyxl import Workbook
from typer.testing import CliRunner, Result

from loraft.cli.app import app
from loraft.config.choices import TASK_OF_GROUP, Method, RowFormat, TaskName
from loraft.config.config_file import load_config
from loraft.config.schema_info import unused_keys
from loraft.tasks import TASKS
from tests.tiny import save_tiny
from tests.training.building import write_rows
from tests.words import Wording

METHODS = get_args(Method)
KINDS: dict[TaskName, str] = {
    "causal_lm": "llama", "preference": "llama", "seq2seq_lm": "t5", "seq2seq_preference": "t5", "seq_cls": "bert",
}  # fmt: skip


def row(row_format: RowFormat, number: int) -> dict[str, Any]:
    question, answer = f"what of order {number}?", "it is late, it is " + "very " * (number % 5) + "late"
    return {
        "messages": {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
        "sharegpt": {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        "alpaca": {"instruction": question, "output": answer},
        "prompt_completion": {"prompt": question, "completion": answer},
        "text": {"text": answer},
        "preferences": {"prompt": question, "chosen": f" {answer}", "rejected": " who knows?"},
        "unpaired": {"prompt": question, "completion": f" {answer}", "label": number % 3 != 0},
        "translation": {"translation": {"en": question, "fr": answer}},
        "classification": {"text": question, "label": ("late", "lost", "no")[number % 3]},
    }[row_format]


def init(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["init", *arguments], input=stdin, prog_name="loraft")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one; no builtin is on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


CELLS = [
    (task, method, form)
    for task, method in product(get_args(TaskName), METHODS)
    for form in TASKS[task].formats
    if (method, form) != ("full", "unpaired")
]
"""What can be learned of the rows of each format; of single answers nothing without a reference."""


@pytest.mark.slow_after(6)
@pytest.mark.parametrize(("task", "method", "row_format"), CELLS)
def test_every_task_method_and_format_gives_a_config_that_loads(
    here: Path, task: TaskName, method: Method, row_format: RowFormat
) -> None:
    write_rows(Path("rows.jsonl"), [row(row_format, number) for number in range(30)])
    result = init("c.yaml", "--data", "rows.jsonl", "--task", task, "--method", method)
    assert result.exit_code == 0, result.stderr
    config = load_config("c.yaml")
    assert (config.task, config.method, config.data.format) == (task, method, row_format)
    assert config.model.name_or_path == TASKS[task].starter_model
    assert tuple(unused_keys(config)) == ()
    lines = Path("c.yaml").read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r" *[a-z_]+: ", line)]
    assert len(keys) > 10
    assert all(lines[number - 1].lstrip().startswith("# ") for number in keys), "each key says why it stands there"
    assert max(map(len, lines)) <= 100


CHECKED = [
    pytest.param(task, method, form, id=f"{task}-{method}-{form}")
    for task, method, form in CELLS
    if method == "lora" or form == TASKS[task].formats[0]
]


@pytest.mark.slow_after(6)
@pytest.mark.parametrize(("task", "method", "row_format"), CHECKED)
def test_check_passes_what_is_written(here: Path, task: TaskName, method: Method, row_format: RowFormat) -> None:
    write_rows(Path("rows.jsonl"), [row(row_format, number) for number in range(30)])
    save_tiny(Path("model"), KINDS[task])
    given = ["--data", "rows.jsonl", "--task", task, "--method", method, "--model", "model"]
    assert init("c.yaml", *given).exit_code == 0
    checked = CliRunner().invoke(app, ["check", "c.yaml", "--json"], prog_name="loraft")
    assert checked.exit_code == 0, checked.stderr
    (source,) = json.loads(checked.stdout)["data"]["sources"]
    assert (source["overlength"], source["kept"]) == (0, 30), "no row is too long for the length that was proposed"


@pytest.mark.parametrize(("task", "row_format"), [(t, f) for t in get_args(TaskName) for f in TASKS[t].formats])
def test_the_task_follows_from_the_rows(here: Path, task: TaskName, row_format: RowFormat) -> None:
    write_rows(Path("rows.jsonl"), [row(row_format, number) for number in range(3)])
    assert init("c.yaml", "--data", "rows.jsonl").exit_code == 0
    expected = "causal_lm" if row_format in TASKS["causal_lm"].formats else task
    expected = "preference" if TASKS[task].compares_answers else expected  # of a decoder, where no model is named
    assert load_config("c.yaml").task == expected


@pytest.mark.parametrize("task", get_args(TaskName))
def test_the_task_follows_from_a_model_that_is_here(here: Path, task: TaskName) -> None:
    save_tiny(Path("model"), KINDS[task])
    assert init("c.yaml", "--model", "model").exit_code == 0
    assert load_config("c.yaml").task == TASK_OF_GROUP[TASKS[task].group]


@pytest.mark.parametrize(("kind", "task"), [("llama", "preference"), ("t5", "seq2seq_preference")])
@pytest.mark.parametrize("row_format", ["preferences", "unpaired"])
def test_the_task_follows_from_model_and_rows(here: Path, kind: str, task: TaskName, row_format: RowFormat) -> None:
    save_tiny(Path("model"), kind)
    write_rows(Path("rows.jsonl"), [row(row_format, number) for number in range(3)])
    assert init("c.yaml", "--model", "model", "--data", "rows.jsonl").exit_code == 0
    assert load_config("c.yaml").task == task


@pytest.mark.parametrize(
    ("asked", "columns"),
    [
        ({"instruction": "add", "input": "1 2"}, {}),
        ({"input": "1 2"}, {"instruction": "input"}),
        ({"question": "1 2", "system": "be brief"}, {"instruction": "question"}),
        ({"prompt": "1 2", "system": ""}, {}),
        ({"prompt": "1 2", "system": "be brief"}, {"instruction": "prompt"}),
        ({"prompt": "1 2", "question": "1"}, {}),
    ],
)
def test_what_asks_for_a_pair_is_one_column(here: Path, asked: dict[str, str], columns: dict[str, str]) -> None:
    write_rows(Path("rows.jsonl"), [{**asked, "chosen": "3", "rejected": "4"} for _ in range(3)])
    assert init("c.yaml", "--data", "rows.jsonl").exit_code == 0
    assert load_config("c.yaml").data.columns == columns


@pytest.mark.parametrize("task", get_args(TaskName))
def test_without_rows_an_example_is_named(here: Path, task: TaskName) -> None:
    result = init("c.yaml", "--task", task)
    assert "no rows were named with --data" in result.stderr
    assert load_config("c.yaml").data.train[0].path == {"causal_lm": "builtin:tickets"}.get(task, "data/train.jsonl")


def test_columns_of_other_names_are_proposed(here: Path) -> None:
    with Path("faq.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "Question", "Answer"], *([n, "who?", "me"] for n in range(12))])
    result = init("c.yaml", "--data", "faq.csv")
    assert result.exit_code == 0, result.stderr
    assert "Question as instruction, Answer as output" in result.stderr
    config = load_config("c.yaml")
    assert config.data.columns == {"instruction": "Question", "output": "Answer"}
    preview = CliRunner().invoke(app, ["preview", "c.yaml", "model.name_or_path=model"], prog_name="loraft")
    assert preview.exit_code == 2, "there is no model of that name"
    save_tiny(Path("model"))
    preview = CliRunner().invoke(app, ["preview", "c.yaml", "model.name_or_path=model"], prog_name="loraft")
    assert preview.exit_code == 0, preview.stderr


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("instruction", "context", "response"), {"output": "response", "input": "context"}),
        (("instruction", "context", "output"), {"input": "context"}),
        (("system_prompt", "question", "response"),
         {"instruction": "question", "output": "response", "system": "system_prompt"}),
        (("text", "hypothesis", "label"), {"text_pair": "hypothesis"}),
    ],
)  # fmt: skip
def test_columns_that_rows_may_have_besides_are_not_lost(
    here: Path, columns: tuple[str, ...], expected: dict[str, str]
) -> None:
    write_rows(
        Path("rows.jsonl"), [{**{name: f"{name} {n % 2}" for name in columns}, "category": "qa"} for n in (1, 2)]
    )
    result = init("c.yaml", "--data", "rows.jsonl")
    assert load_config("c.yaml").data.columns == expected
    assert "nothing is read from category" in result.stderr


def test_what_turns_alone_say_besides_is_told_without_an_option_that_would_not_read_it(here: Path) -> None:
    rows = [{"messages": [{**turn, "mood": "glad"} for turn in row("messages", n)["messages"]]} for n in (1, 2)]
    write_rows(Path("rows.jsonl"), rows)
    said = init("c.yaml", "--data", "rows.jsonl").stderr
    assert ("nothing is read from messages[].mood" in said, "--columns" in said) == (True, False)


def test_of_an_object_with_many_keys_the_first_that_are_not_read_are_named(here: Path) -> None:
    """Keys may be others in each row, numbers of documents say."""
    write_rows(Path("rows.jsonl"), [{"page": {"body": f"text {n}", f"key-{n}": 1}} for n in range(100)])
    said = " ".join(init("c.yaml", "--data", "rows.jsonl", "--columns", "text=page.body").stderr.split())
    assert ("page.key-7 and 92 more" in said, "page.key-8" in said) == (True, False)


def test_columns_that_look_like_an_answer_beside_a_text_are_told_with_the_option_that_reads_them(here: Path) -> None:
    write_rows(
        Path("rows.jsonl"), [{"text": f"Add 1 and {n}.", "solution": f"1 + {n}", "test_list": []} for n in (1, 2)]
    )
    option = ["--columns", "instruction=text,output=solution"]
    assert " ".join(option) in " ".join(init("a.yaml", "--data", "rows.jsonl").stderr.split())
    assert "looks like" not in init("b.yaml", "--data", "rows.jsonl", *option).stderr


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize("keys", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_turns_of_either_kind_pass_check_in_any_column(here: Path, column: str, keys: tuple[str, ...]) -> None:
    role, said, asks, answers = keys
    turns = [{role: asks, said: "where?"}, {role: answers, said: "here"}]
    write_rows(Path("rows.jsonl"), [{column: turns}] * 3)
    save_tiny(Path("model"))
    assert init("c.yaml", "--data", "rows.jsonl", "--model", "model").exit_code == 0
    checked = CliRunner().invoke(app, ["check", "c.yaml"], prog_name="loraft")
    assert checked.exit_code == 0, checked.stderr


def test_columns_are_taken_as_they_are_given(here: Path) -> None:
    write_rows(Path("rows.jsonl"), [{"Frage": "wer?", "Antwort": " ich" if n else "du"} for n in range(3)])
    result = init("c.yaml", "--data", "rows.jsonl", "--columns", "prompt=Frage,completion=Antwort")
    assert result.exit_code == 0
    assert "in 1 of 3 rows nothing is between them" in result.stderr
    assert load_config("c.yaml").data.columns == {"prompt": "Frage", "completion": "Antwort"}


@pytest.mark.parametrize(
    ("row", "given"),
    [
        ({"prompt": "who?", "completion": "me"}, ()),
        ({"Frage": "who?", "Antwort": "me"}, ("--columns", "prompt=Frage,completion=Antwort")),
        ({"prompt": "who?", "better": "me", "rejected": "you"}, ("--columns", "prompt=prompt,chosen=better")),
        ({"prompt": "who?", "answer": "me", "label": True}, ("--columns", "completion=answer", "--format", "unpaired")),
        ({"q": "who?", "system": "s", "chosen": "me", "rejected": "you"}, ("--columns", "prompt=q")),
    ],
)
def test_the_columns_that_a_sentence_names_can_be_given(
    here: Path, row: dict[str, object], given: tuple[str, ...]
) -> None:
    """Read by them a chat template prints the rows, and no sentence is left."""
    write_rows(Path("rows.jsonl"), [row] * 3)
    (columns,) = re.findall(r"--columns ([\w=,]*\w)", init("a.yaml", "--data", "rows.jsonl", *given).stderr)
    result = init("b.yaml", "--data", "rows.jsonl", "--columns", columns, *given[2:])
    assert result.exit_code == 0, result.stderr
    assert "instruction" in load_config("b.yaml").data.columns
    assert '"prompt"' not in Path("b.yaml").read_text(), "the row that is shown has it so too"
    assert "--columns" not in result.stderr


@pytest.mark.parametrize("kind", ["text", "turns"])
def test_better_answers_alone_are_learned_by_the_columns_that_the_refusal_names(here: Path, kind: str) -> None:
    chosen: object = "me"
    if kind == "turns":  # as UltraFeedback has them
        chosen = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
    write_rows(Path("rows.jsonl"), [{"prompt": "who?", "chosen": chosen, "rejected": chosen}] * 3)
    given = ["a.yaml", "--data", "rows.jsonl", "--task", "causal_lm"]
    refused = init(*given)
    assert refused.exit_code == 2
    (columns,) = re.findall(rf"--columns (\S+) where they are {kind}", refused.stderr)
    assert init(*given, "--columns", columns).exit_code == 0


def test_what_is_found_in_the_rows_stands_in_the_config(here: Path) -> None:
    rows = [{"text": "late " * 100, "label": "yes" if n % 8 else "no"} for n in range(40)]
    write_rows(Path("rows.jsonl"), rows)
    init("c.yaml", "--data", "rows.jsonl")
    config = load_config("c.yaml")
    assert config.data.labels == ("no", "yes")
    assert config.training.class_weights == "balanced"
    assert config.data.eval == 0.1
    save_tiny(Path("model"), "bert")
    init("c.yaml", "--data", "rows.jsonl", "--model", "model", "--overwrite")
    assert load_config("c.yaml").data.max_length == 256
    write_rows(Path("rows.jsonl"), [row("translation", n) for n in range(5)])
    init("c.yaml", "--data", "rows.jsonl", "--overwrite")
    config = load_config("c.yaml")
    assert (config.data.source_lang, config.data.target_lang) == ("en", "fr")
    assert config.data.source_prefix == "translate English to French: "
    assert config.data.eval is None


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        ("tiny-t5", True),
        ("marian", False),
        ("google/flan-t5-base", True),
        ("google/mt5-small", False),
        ("facebook/nllb-200-distilled-600M", False),
    ],
)
def test_only_t5_gets_words_before_each_source(here: Path, model: str, prefix: bool) -> None:
    """A folder tells what it is by its config.json, a model that is elsewhere by its name."""
    if "/" not in model:
        Path(model).mkdir()
        (Path(model) / "config.json").write_text(json.dumps({"model_type": model.removeprefix("tiny-")}))
    write_rows(Path("rows.jsonl"), [row("translation", n) for n in range(5)])
    assert init("c.yaml", "--data", "rows.jsonl", "--task", "seq2seq_lm", "--model", model).exit_code == 0
    assert load_config("c.yaml").data.source_prefix == ("translate English to French: " if prefix else "")


def test_columns_may_name_what_lies_inside_a_column(here: Path) -> None:
    write_rows(Path("rows.jsonl"), [row("translation", n) for n in range(5)])
    columns = ("--columns", "source=translation.fr,target=translation.en")
    assert init("c.yaml", "--data", "rows.jsonl", "--task", "seq2seq_lm", *columns).exit_code == 0
    assert load_config("c.yaml").data.columns == {"source": "translation.fr", "target": "translation.en"}


@pytest.mark.parametrize(
    ("columns", "task", "shown"),
    [
        (("messages", "rejected_response"), "preference", ("messages", "rejected_response")),
        (("instruction", "chosen", "rejected", "input"), "preference", ("instruction", "chosen", "rejected", "input")),
        (("messages", "label"), "preference", ("messages", "label")),
        (("question", "answer", "id"), "causal_lm", ("instruction", "output")),
    ],
)
def test_the_row_that_a_config_shows_has_the_columns_that_are_read(
    here: Path, columns: tuple[str, ...], task: str, shown: tuple[str, ...]
) -> None:
    """Of formats with several kinds of rows it was always the first: a prompt where the rows have turns, say."""
    turns = row("messages", 1)["messages"]
    rows = [{name: turns if name == "messages" else f"{name} {n}" for name in columns} for n in range(4)]
    write_rows(Path("rows.jsonl"), [each | ({"label": True} if "label" in columns else {}) for each in rows])
    assert init("c.yaml", "--data", "rows.jsonl", "--task", task).exit_code == 0
    text = " ".join(line.strip().removeprefix("# ") for line in Path("c.yaml").read_text().splitlines())
    example = json.JSONDecoder().raw_decode(text.partition("They are read as ")[2])[0]
    assert tuple(example) == shown


def test_a_path_that_yaml_would_misread_is_quoted(here: Path) -> None:
    name = 'no: rows #1 \'of "mine".jsonl'
    write_rows(Path(name), [row("text", n) for n in range(3)])
    assert init("my run.yaml", "--data", name).exit_code == 0
    assert load_config("my run.yaml").data.train[0].path == name


BAD = [
    "nowhere.jsonl",
    "empty.jsonl",
    "blank.jsonl",
    "broken.jsonl",
    "unknown.jsonl",
    "folder",
    "scores.jsonl",
    "one.jsonl",
    "ambiguous.csv",
]


@pytest.mark.parametrize("data", BAD)
def test_rows_that_cannot_be_used_are_refused_and_nothing_is_written(here: Path, data: str, wording: Wording) -> None:
    Path("empty.jsonl").touch()
    Path("blank.jsonl").write_text("\n\n")
    Path("broken.jsonl").write_text("{\n")
    write_rows(Path("unknown.jsonl"), [{"a": 1, "b": 2}])
    Path("folder").mkdir()
    write_rows(Path("scores.jsonl"), [{"text": "good", "label": 0.5}] * 9)
    write_rows(Path("one.jsonl"), [{"text": "good", "label": "x"}] * 9)
    Path("ambiguous.csv").write_text("text;a,label\ngood;x,y\n")
    result = init("c.yaml", "--data", data)
    assert result.exit_code == 2
    assert data in result.stderr
    wording(result.stderr)
    assert not Path("c.yaml").exists()


@pytest.mark.parametrize(
    "columns",
    [
        "promt=a",
        "text=c",
        "text",
    ],
)
def test_columns_that_are_not_there_are_refused(here: Path, columns: str, wording: Wording) -> None:
    write_rows(Path("rows.jsonl"), [{"a": "x", "b": "y"}])
    result = init("c.yaml", "--data", "rows.jsonl", "--columns", columns)
    assert result.exit_code == 2
    wording(result.stderr)


def test_a_column_that_is_said_twice_is_refused(here: Path) -> None:
    write_rows(Path("rows.jsonl"), [{"a": "x", "b": "y"}])
    result = init("c.yaml", "--data", "rows.jsonl", "--columns", "text=a,text=b")
    assert (result.exit_code, "--columns" in result.stderr) == (2, True)
    assert not Path("c.yaml").exists()


def test_what_is_there_is_never_written_over_unasked(here: Path) -> None:
    Path("c.yaml").write_text("mine")
    refused = init("c.yaml", "--task", "causal_lm")
    assert refused.exit_code == 2
    assert "is there already" in refused.stderr
    assert Path("c.yaml").read_text() == "mine"
    assert init("c.yaml", "--task", "causal_lm", "--overwrite").exit_code == 0
    assert load_config("c.yaml").task == "causal_lm"
    assert [path.name for path in here.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "path",
    [
        "folder.yaml",
        "config",
        "no/c.yaml",
        "rows.jsonl",
    ],
)
def test_a_place_where_no_config_can_be_is_refused(here: Path, path: str, wording: Wording) -> None:
    Path("folder.yaml").mkdir()
    Path("rows.jsonl").touch()
    result = init(path)
    assert result.exit_code == 2
    wording(result.stderr)


def test_a_model_of_another_kind_is_refused(here: Path) -> None:
    save_tiny(Path("model"), "t5")
    result = init("c.yaml", "--model", "model", "--task", "causal_lm")
    assert result.exit_code == 2
    assert "is of type t5, which is not trained for task causal_lm" in result.stderr
    assert "--task seq2seq_lm" in result.stderr


def test_nothing_is_asked_where_there_is_no_terminal(here: Path) -> None:
    result = init("c.yaml", stdin="seq_cls\nfull\nmine\n")
    assert result.exit_code == 0
    assert load_config("c.yaml").method == "lora"


def test_on_a_terminal_what_no_option_says_is_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["seq2seq", "seq2seq_lm", "full", "my/model"])
    asked: list[str] = []

    def prompt(what: str, *, default: str, err: bool) -> str:
        assert err, "questions are no result"
        asked.append(f"{what}: {default}")
        return next(answers)

    monkeypatch.setattr(typer, "prompt", prompt)
    monkeypatch.setattr("loraft.cli.commands.init._on_a_terminal", lambda: True)
    write_rows(Path("rows.jsonl"), [row("prompt_completion", n) for n in range(3)])
    assert init("c.yaml", "--data", "rows.jsonl").exit_code == 0
    config = load_config("c.yaml")
    assert (config.task, config.method, config.model.name_or_path) == ("seq2seq_lm", "full", "my/model")
    assert [question.partition(" (")[0] for question in asked] == [
        "task",
        "task",
        "method",
        "model: google-t5/t5-small",
    ]
    assert asked[0].endswith("causal_lm")


def test_ctrl_c_at_a_question_is_a_stop(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise typer.Abort

    monkeypatch.setattr(typer, "prompt", interrupted)
    monkeypatch.setattr("loraft.cli.commands.init._on_a_terminal", lambda: True)
    result = init("c.yaml")
    assert (result.exit_code, result.stderr) == (130, "stopped.\n")


def test_json_is_one_document(here: Path) -> None:
    document = json.loads(init("c.yaml", "--task", "seq_cls", "--json").stdout)
    assert document["config"] == "c.yaml"
    assert document["model"] == TASKS["seq_cls"].starter_model
    refused = json.loads(init("c.yaml", "--json").stdout)
    assert refused["exit_code"] == 2


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL_TURNS = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "Yes."},
]
HARD: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "chinese": ("llama", [{"instruction": "天气" * 70, "output": "下雨" * 9}] * 12),
    "thai": ("llama", [{"prompt": "ฝนตก" * 40, "completion": " ใช่"}] * 12),
    "german": ("llama", [{"question": "Übermäßig größer? " * 4, "answer": "Äußerst."}] * 12),
    "a pair in chinese": ("t5", [{"source": "天气" * 70, "target": "下雨" * 60}] * 12),
    "a class in stars": ("bert", [{"id": n, "review": f"good {n} " * 40, "stars": 1 + n % 5} for n in range(20)]),
    "long text": ("llama", [{"text": "late " * 900}] * 12),
    "a system column": ("llama", [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                                   "system": "Be brief. " * 20}] * 12),
}  # fmt: skip


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", HARD)
def test_check_passes_what_is_written_for_a_model_that_is_here(here: Path, name: str) -> None:
    kind, rows = HARD[name]
    save_tiny(Path("model"), kind)
    write_rows(Path("rows.jsonl"), rows)
    result = init(
        "c.yaml", "--data", "rows.jsonl", "--model", "model", *(["--task", "seq2seq_lm"] if kind == "t5" else [])
    )
    assert result.exit_code == 0, result.stderr
    checked = CliRunner().invoke(app, ["check", "c.yaml", "--json"], prog_name="loraft")
    assert checked.exit_code == 0, checked.stderr
    (source,) = json.loads(checked.stdout)["data"]["sources"]
    assert source["kept"] >= len(rows)
    assert source["overlength"] == 0 or source["done"] == "split"


def test_rows_of_which_the_template_leaves_something_out_are_refused_with_the_reason(here: Path) -> None:
    save_tiny(Path("model"), "llama")
    write_rows(Path("rows.jsonl"), [{"messages": TOOL_TURNS}] * 12)
    result = init("c.yaml", "--data", "rows.jsonl", "--model", "model")
    assert result.exit_code == 2
    assert "prints no calls of tools" in result.stderr
    assert not Path("c.yaml").exists()


def test_a_builtin_encoder_is_known_before_it_is_fetched(here: Path) -> None:
    write_rows(Path("rows.jsonl"), [{"id": n, "review": f"good {n}", "stars": n % 5} for n in range(20)])
    assert init("c.yaml", "--data", "rows.jsonl", "--model", "builtin:all-minilm-l6-v2").exit_code == 0
    config = load_config("c.yaml")
    assert (config.task, config.data.columns) == ("seq_cls", {"text": "review", "label": "stars"})


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"messages": TOOL_TURNS[:1] + TOOL_TURNS[3:], "images": ["a.png"]}], "loraft trains text alone"),
    ],
)
def test_rows_that_are_not_trained_yet_are_told(here: Path, rows: list[dict[str, Any]], told: str) -> None:
    write_rows(Path("rows.jsonl"), rows * 9)
    result = init("c.yaml", "--data", "rows.jsonl")
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) < 6


@pytest.mark.parametrize(
    ("task", "example"),
    [
        ("seq_cls", "text=THEIRS,label=THEIRS"),
        ("seq2seq_lm", "source=THEIRS,target=THEIRS"),
        ("preference", "chosen=THEIRS,rejected=THEIRS"),
    ],
)
def test_the_example_of_columns_is_of_the_task(here: Path, task: TaskName, example: str) -> None:
    write_rows(here / "x.jsonl", [{"a": "b", "c": "d"}] * 3)
    assert f"--columns {example}" in init("c.yaml", "--data", "x.jsonl", "--task", task).stderr


def test_single_answers_are_learned_beside_a_base_alone_and_a_label_beside_other_columns_is_not_guessed_at(
    here: Path,
) -> None:
    write_rows(here / "judged.jsonl", [row("unpaired", number) for number in range(3)])
    result = init("c.yaml", "--data", "judged.jsonl", "--method", "full")
    assert (result.exit_code, Path("c.yaml").exists()) == (2, False)
    assert "--method" in result.stderr
    write_rows(here / "talks.jsonl", [{**row("messages", number), "label": "refund"} for number in range(3)])
    assert init("c.yaml", "--data", "talks.jsonl").exit_code == 0
    assert load_config("c.yaml").task == "causal_lm"


def test_a_config_with_a_secret_is_not_written(here: Path) -> None:
    """`loraft train` would refuse it, and it would lie in a file."""
    token = f"hf_{'a' * 30}"
    write_rows(Path(f"{token}.jsonl"), [row("alpaca", number) for number in range(30)])
    result = init("c.yaml", "--data", f"{token}.jsonl")
    assert result.exit_code == 2
    assert "data.train: holds a token of Hugging Face, and a config is written" in result.stderr
    assert token not in result.stderr + result.stdout
    assert not Path("c.yaml").exists()


def test_a_part_of_a_dataset_of_the_hub_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has several configurations, or no split `train`, says which there are: an option names one."""
    rows = datasets.Dataset.from_list([row("alpaca", number) for number in range(30)])

    def load_dataset(path: str, name: str | None = None, *, split: str, **_: Any) -> Any:
        if (name, split) != ("main", "test"):
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'old']")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused = init("c.yaml", "--data", "org/set")
    assert (refused.exit_code, Path("c.yaml").exists()) == (2, False)
    assert "['main', 'old']" in refused.stderr
    assert all(option in refused.stderr for option in ("--name", "--split"))
    save_tiny(Path("model"))
    result = init("c.yaml", "--data", "org/set", "--name", "main", "--split", "test", "--model", "model")
    assert result.exit_code == 0, result.stderr
    data = load_config("c.yaml").data
    assert (data.train[0].path, data.name, data.split) == ("org/set", "main", "test")
    checked = CliRunner().invoke(app, ["check", "c.yaml"], prog_name="loraft")
    assert checked.exit_code == 0, checked.stderr


def test_the_sheet_of_a_workbook_is_named(here: Path) -> None:
    book = Workbook()
    for sheet in (book.active, book.create_sheet("faq")):
        for cells in (("question", "answer"), *(("who?", "me") for _ in range(12))):
            sheet.append(cells)
    book.save("x.xlsx")
    assert "--name" in init("c.yaml", "--data", "x.xlsx").stderr
    assert init("c.yaml", "--data", "x.xlsx", "--name", "faq").exit_code == 0
    assert load_config("c.yaml").data.name == "faq"


def test_the_rows_that_are_evaluated_are_others_than_those_trained_on(here: Path) -> None:
    for split, held_out in (("train", True), ("eval", False)):
        assert init("c.yaml", "--data", "builtin:tickets", "--split", split, "--overwrite").exit_code == 0
        assert bool(load_config("c.yaml").data.eval_sources) == held_out


@pytest.mark.parametrize("given", [("--data", ""), ("--split", "x"), ("--columns", "text=a")])
def test_what_is_said_of_rows_that_are_not_named_is_refused(here: Path, given: tuple[str, ...]) -> None:
    result = init("c.yaml", *given)
    assert (result.exit_code, "--data" in result.stderr, Path("c.yaml").exists()) == (2, True, False)


def test_columns_that_no_reading_of_the_rows_has_are_refused(here: Path) -> None:
    write_rows(Path("rows.jsonl"), [row("messages", number) for number in range(3)])
    result = init("c.yaml", "--data", "rows.jsonl", "--columns", "prompt=messages")
    assert (result.exit_code, "messages as prompt" in result.stderr) == (2, True)


def test_the_columns_that_are_named_are_those_that_are_read(here: Path) -> None:
    """Rows that are conversations too are read by the columns that somebody names."""
    write_rows(Path("rows.jsonl"), [{**row("messages", n), "ask": "who?", "say": f" me {n}"} for n in range(12)])
    save_tiny(Path("model"))
    named = ("--columns", "prompt=ask,completion=say", "--model", "model")
    assert init("c.yaml", "--data", "rows.jsonl", *named).exit_code == 0
    assert load_config("c.yaml").data.format == "prompt_completion"
    checked = CliRunner().invoke(app, ["check", "c.yaml", "data.format=auto", "--json"], prog_name="loraft")
    (source,) = json.loads(checked.stdout)["data"]["sources"]
    assert source["format"] == "prompt_completion"

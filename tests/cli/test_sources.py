"""Rows from wherever they come, through the commands: the same run as with the plain file, or one sentence why not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Loraft
from tests.rows.files import PAIRS, TYPES, written
from tests.tiny import mostly_slow
from tests.words import Wording

TO_ITS_END = ("data.eval=null", "training.max_steps=2", "training.sample_prompts=[]")


def checked(loraft: Loraft, *words: str, stdin: str | bytes | None = None) -> dict[str, Any]:
    done = loraft("check", "tickets.yaml", "--json", *words, stdin=stdin)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def tokens_of(report: dict[str, Any]) -> tuple[int, int, list[str]]:
    data = report["data"]
    return data["tokens"], data["trained_tokens"], [sample["text"] for sample in data["samples"]]


def weights(run: str) -> bytes:
    return Path(run, "adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", mostly_slow(TYPES, ".csv", ".parquet"))
def test_check_tells_the_same_of_every_type_of_file(loraft: Loraft, place: Path, kind: str) -> None:
    plain = tokens_of(checked(loraft, f"data.train={written(place, '.jsonl')}", "data.eval=null"))
    rows = written(place, kind)
    assert tokens_of(checked(loraft, f"data.train={rows}", "data.eval=null")) == plain
    rows.rename(rows.with_suffix(rows.suffix.upper()))
    assert tokens_of(checked(loraft, f"data.train=./row?{rows.suffix.upper()}", "data.eval=null")) == plain
    piped = rows.with_suffix(rows.suffix.upper()).read_bytes()
    assert tokens_of(checked(loraft, "data.train=-", "data.eval=null", stdin=piped)) == plain


@pytest.mark.slow
def test_a_run_of_what_was_piped_in_is_that_of_the_file_and_can_be_gone_on_with(
    loraft: Loraft, place: Path, wording: Wording
) -> None:
    rows = Path("rows.jsonl").read_bytes()
    plain = loraft("train", "tickets.yaml", "training.output_dir=a", *TO_ITS_END)
    assert plain.exit_code == 0, plain.stderr
    piped = ("train", "tickets.yaml", "data.train=-", "training.output_dir=b", *TO_ITS_END)
    begun = loraft(*piped, "training.max_steps=1", stdin=gzip.compress(rows))
    assert begun.exit_code == 0, begun.stderr
    (line,) = [line for line in Path("b/config.yaml").read_text().splitlines() if "sources" in line]
    assert line.endswith("rows.jsonl"), "the run writes down what it read"
    nothing = loraft(*piped, "--resume")
    assert nothing.exit_code == 2
    wording(nothing.stderr)
    other = loraft(*piped, "--resume", stdin=rows[: rows.index(b"\n") + 1] * 20)
    assert (other.exit_code, "the rows are not the same" in other.stderr) == (2, True)
    again = loraft(*piped, "--resume", stdin=rows)
    assert again.exit_code == 0, again.stderr
    alone = loraft("train", "b/config.yaml", "training.output_dir=c", "training.max_steps=2")
    assert alone.exit_code == 0, alone.stderr
    assert weights("c") == weights("a"), "its own config repeats it, with nothing piped in"
    measured = loraft("evaluate", "b", "--data", "-", "--metrics", "loss", "--json", stdin=rows)
    assert json.loads(measured.stdout)["rows"] == 20


def test_limit_and_order_are_what_the_config_says(loraft: Loraft, place: Path, wording: Wording) -> None:
    limited = ("data.limit=6", "data.shuffle=false", "data.eval=null")
    done = loraft("check", "tickets.yaml", *limited)
    assert done.exit_code == 0
    wording("\n".join(line for line in done.stderr.splitlines() if "limit" in line))
    shown = json.loads(loraft("preview", "tickets.yaml", *limited, "--json").stdout)
    assert [[row["where"] for row in batch["rows"]] for batch in shown["batches"]] == [
        [f"rows.jsonl:{line}" for line in range(1, 5)],
        ["rows.jsonl:5", "rows.jsonl:6"],
    ]
    for key in ("training.group_by_length=true", "data.packing=fill"):
        refused = loraft("check", "tickets.yaml", *limited, key)
        assert refused.exit_code == 2
        wording(refused.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_in_the_order_of_its_files_goes_on_where_it_was(loraft: Loraft, place: Path, streaming: bool) -> None:
    kept = ("data.shuffle=false", f"data.streaming={str(streaming).lower()}", *TO_ITS_END)
    for run, steps in (("a", [3]), ("b", [1, 3])):
        for count in steps:
            length = ("training.lr_scheduler_type=constant", "training.warmup_steps=0", f"training.max_steps={count}")
            resume = ["--resume"] * (count != steps[0])
            done = loraft("train", "tickets.yaml", *kept, *length, f"training.output_dir={run}", *resume)
            assert done.exit_code == 0, done.stderr
    assert weights("a") == weights("b")


@pytest.mark.slow
def test_a_folder_of_texts_is_prepared_by_init_checked_and_trained(
    loraft: Loraft, place: Path, wording: Wording
) -> None:
    for name in ("b.md", "sub/a.md", "picture.png"):
        (place / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "docs" / name).write_text(f"# {name}\n\nthe order is late\n")
    begun = loraft("init", "texts.yaml", "--data", "docs", "--model", "model")
    assert begun.exit_code == 0, begun.stderr
    wording(begun.stderr)
    assert "text_by: file" in Path("texts.yaml").read_text()
    done = loraft("train", "texts.yaml", "training.max_steps=1", "training.output_dir=a", "model.dtype=float32")
    assert done.exit_code == 0, done.stderr
    shown = loraft("preview", "texts.yaml", "data.text_by=paragraph", "--json")
    assert json.loads(shown.stdout)["rows_in_split"] == 4


def test_init_takes_what_is_piped_in(loraft: Loraft, place: Path, wording: Wording) -> None:
    rows = written(place, "; .csv").read_bytes()
    done = loraft("init", "piped.yaml", "--data", "-", "--model", "model", stdin=rows)
    assert done.exit_code == 0, done.stderr
    wording(done.stderr)
    assert loraft("check", "piped.yaml", stdin=rows).exit_code == 0


@pytest.mark.parametrize("words", [("check", "tickets.yaml", "data.train=-"), ("evaluate", "run", "--data", "-")])
def test_a_bad_row_of_what_was_piped_in_is_called_so(loraft: Loraft, place: Path, words: tuple[str, ...]) -> None:
    done = loraft(*words, stdin='{"prompt": "a", "completion": "b"}\n{"prompt": 3, "completion": "b"}\n')
    assert (done.exit_code, "error: standard input:2 prompt: " in done.stderr) == (2, True)


def test_what_was_piped_in_is_called_so_in_tables_and_notes_too(loraft: Loraft, place: Path) -> None:
    rows = b'{"prompt": "a ", "completion": "b"}\n' * 3 + b'{"prompt": 3, "completion": "b"}\n'
    keys = ("data.train=-", "data.on_bad_row=skip", "data.eval=null")
    checked = loraft("check", "tickets.yaml", *keys, stdin=rows)
    assert (checked.exit_code, "sources/" in checked.stdout + checked.stderr) == (0, False)
    assert "standard input: 1 bad row is skipped, at standard input:4 prompt" in checked.stderr
    shown = loraft("preview", "tickets.yaml", *keys, "--row", "standard input:2", stdin=rows)
    assert (shown.exit_code, "standard input:2  " in shown.stdout) == (0, True)
    assert loraft("preview", "tickets.yaml", *keys, "--html", "page.html", stdin=rows).exit_code == 0
    page = Path("page.html").read_text()
    assert ("<h2>standard input:2</h2>" in page, "sources/" in page) == (True, False)


def test_generate_answers_what_is_piped_in(loraft: Loraft, place: Path) -> None:
    asked = "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in PAIRS[:2])
    words = ("generate", "run", "--input", "-", "--output", "o.jsonl", "--max-new-tokens", "2")
    for _ in range(2):  # the second time all answers are there
        done = loraft(*words, stdin=asked)
        assert done.exit_code == 0, done.stderr
    assert [json.loads(line)["prompt"] for line in Path("o.jsonl").read_text().splitlines()] == [
        row["prompt"] for row in PAIRS[:2]
    ]
    refused = loraft("generate", "run", "--input", "-", "--output", "o.jsonl.gz", stdin=asked)
    assert refused.exit_code == 2
    assert "Name it o.jsonl." in refused.stderr


WRONG = {
    "mixed": "holds files of several types",
    "empty/*.jsonl": "a pattern that nothing matches",
    "cut.jsonl.gz": "cut short",
    "damaged.jsonl.zst": "damaged",
    "two.csv": "parted in two ways",
    "sheets.xlsx": "two sheets",
    "http://127.0.0.1:1/rows.jsonl": "not reached",
    "s3://bucket/rows.jsonl": "a package is missing",
    "memory://rows.jsonl": "no such file",
    "picture.png": "another type",
    "-": "nothing piped in",
}


@pytest.mark.parametrize("path", WRONG)
def test_what_cannot_be_read_is_refused_in_one_sentence_with_a_remedy(
    loraft: Loraft, place: Path, wording: Wording, path: str
) -> None:
    for name in ("mixed/a.jsonl", "mixed/b.txt", "empty/x", "picture.png"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text('{"text": "x"}\n')
    (place / "cut.jsonl.gz").write_bytes(gzip.compress(Path("rows.jsonl").read_bytes())[:90])
    (place / "damaged.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" * 90)
    (place / "two.csv").write_text("prompt;a,completion\n1;2,3\n")
    if path == "sheets.xlsx":
        from openpyxl import Workbook

        book = Workbook()
        for sheet in (book.active, book.create_sheet("Second")):
            sheet.append(["text"])
        book.save(place / path)
    done = loraft("check", "tickets.yaml", f"data.train={path}", "data.eval=null")
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    lines = done.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    wording(done.stderr[done.stderr.index("error: ") :])

"""`loraft preview`: what is drawn, what is written, and what is refused."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from loraft.cli.app import app
from loraft.cli.views.preview_view import MARK, has_shades, legible, render_preview
from loraft.config.config_file import load_config
from tests.tiny import save_tiny
from tests.training.building import rows, write_rows
from tests.words import Wording

EVIL = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, rows and a config, which is the current one."""
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("model"))
    evil = {"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]}
    write_rows(Path("train.jsonl"), [*rows(9), evil])
    text = "model: {name_or_path: model}\ndata: {train: train.jsonl, eval: null, max_length: 128}\n"
    Path("c.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def preview(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["preview", "c.yaml", *arguments], prog_name="loraft")


def test_without_colours_everything_is_said_by_marks(here: Path) -> None:
    result = preview("-n", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    learned = re.findall(r"⟦(.*?)⟧", result.stdout, re.DOTALL)
    assert [text.replace("│", "") for text in learned[:2]] == ["the<|im_end|>", "order is late and<|im_end|>"]
    assert "train.jsonl:2  " in result.stdout
    assert "<|im_end|> is id 2 (end of text)" in result.stdout
    assert "the first 2 of 2" not in result.stdout
    assert re.search(r"1  8 rows · [\d,]+ tokens in one line", result.stdout)
    assert "rows end to end, without padding" in result.stdout


@pytest.mark.parametrize("colours", ["truecolor", "256"])
def test_with_colours_neighbouring_tokens_have_other_shades(here: Path, colours: str) -> None:
    from loraft.inspection.row_preview import preview

    seen = preview(load_config("c.yaml"), count=1)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=colours, width=100, no_color=False)  # type: ignore[arg-type]
    assert has_shades(console)
    console.print(*render_preview(seen, shaded=True), sep="\n")
    drawn = stream.getvalue()
    assert "│" not in drawn
    assert "⟦" not in drawn
    backgrounds = re.findall(r"48;([25];[\d;]+?)m", drawn.partition("batches")[0])
    assert len(backgrounds) == seen.rows[0].tokens
    assert all(one != other for one, other in pairwise(backgrounds))
    assert len(set(backgrounds)) == 4, "two shades for what is read, two for what is learned"
    for few in ("standard", None):
        assert not has_shades(Console(file=stream, force_terminal=True, color_system=few))  # type: ignore[arg-type]


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert legible("a\tb\n") == "a⇥b⏎\n"
    assert legible("\x1b[2J\u202e\u200b\xa0") == "␛[2J<U+202E><U+200B><U+00A0>"
    assert legible("") == "‥"


def test_a_long_row_is_cut_in_the_middle_and_says_so(here: Path) -> None:
    write_rows(Path("train.jsonl"), [{"text": "the order is late " * 80}, {"text": "late"}])
    result = preview("data.max_length=512", "-n", "1")
    assert re.search(r"… [\d,]+ tokens more, [\d,]+ of them learned \(--whole shows them\) …", result.stdout)
    assert result.stdout.count("lat│e") < preview("data.max_length=512", "-n", "1", "--whole").stdout.count("lat│e")


def test_json_is_one_document(here: Path) -> None:
    document = json.loads(preview("--json", "-n", "3").stdout)
    assert [row["where"] for row in document["rows"]] == [f"train.jsonl:{line}" for line in (1, 2, 3)]
    token = document["rows"][0]["parts"][0]["tokens"][0]
    assert token.keys() == {"id", "text", "trained", "special", "segment"}
    assert document["sources"][0]["read"] == 10
    refused = json.loads(preview("--json", "--row", "77").stdout)
    assert refused["exit_code"] == 2
    assert refused["problems"][0]["where"] == "--row"


class Page(HTMLParser):
    """Reads a page as a browser would: its elements and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_row_with_a_script_is_harmless_in_the_page(here: Path) -> None:
    result = preview("--row", "10", "--html", "rows.html")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "wrote rows.html: 1 row\n"
    page = Page(Path("rows.html").read_text(encoding="utf-8"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    assert not any(name.startswith("on") or name in ("src", "href") for _, given in page.tags for name in given)
    assert page.text.count(EVIL) == 2, "the text is there, as text"


def test_a_title_with_a_script_is_harmless(here: Path) -> None:
    name = "<script>x.yaml"
    Path(name).write_text(Path("c.yaml").read_text())
    result = CliRunner().invoke(app, ["preview", name, "--html", "rows.html"], prog_name="loraft")
    assert result.exit_code == 0, result.stderr
    assert "<script>" not in Path("rows.html").read_text()


def test_a_page_replaces_a_page_and_nothing_else(here: Path) -> None:
    assert preview("--html", "rows.html").exit_code == 0
    assert preview("--html", "rows.html", "-n", "1").exit_code == 0
    assert MARK in Path("rows.html").read_text()
    Path("mine.html").write_text("<p>mine</p>")
    refused = preview("--html", "mine.html")
    assert refused.exit_code == 2
    assert "is no page of loraft preview" in refused.stderr
    assert Path("mine.html").read_text() == "<p>mine</p>"
    assert preview("--html", "mine.html", "--overwrite").exit_code == 0
    assert MARK in Path("mine.html").read_text()


@pytest.mark.parametrize("name", ["c.yaml", "train.jsonl"])
def test_what_is_read_is_never_written_over(here: Path, name: str) -> None:
    before = Path(name).read_bytes()
    result = preview("--html", name, "--overwrite")
    assert result.exit_code == 2
    assert "is a file that this command reads" in result.stderr
    assert Path(name).read_bytes() == before


@pytest.mark.parametrize(
    "target",
    [
        "model",
        "nowhere/x.html",
    ],
)
def test_where_no_page_can_be_is_told_before_rows_are_read(here: Path, target: str, wording: Wording) -> None:
    result = preview("data.train=absent.jsonl", "--html", target)
    assert result.exit_code == 2
    wording(result.stderr)


def test_rows_that_are_dropped_are_counted_with_the_reason(here: Path) -> None:
    with Path("train.jsonl").open("a") as file:
        file.write('{"messages": 3}\n')
    result = preview("data.max_length=40", "data.on_bad_row=skip")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"train.jsonl: of 11 rows 1 bad, skipped · \d too long, dropped", result.stdout)
    bad = preview()
    assert bad.exit_code == 2
    assert "train.jsonl:11 messages" in bad.stderr


def test_the_api_gives_the_rows_as_values(here: Path) -> None:
    from loraft import api

    assert api.preview(load_config("c.yaml"), count=2).rows[1].where == "train.jsonl:2"

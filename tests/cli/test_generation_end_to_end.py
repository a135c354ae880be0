"""`loraft generate` for many prompts and several adapters as a person runs it; what hostile adapters do: nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.running import loraft, refused
from tests.inference.voices import adapter_in, base_in

WORDS = ("the order is late", "so", "the customer said that the answer is in the text", "user", "and", "is the system")
SETTINGS = ("--dtype", "float32", "--max-new-tokens", "12")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    base = base_in(folder / "base")
    adapter_in(folder / "a", base, system_prompt="Be brief.")
    adapter_in(folder / "b", base, seed=4)
    prompts = [f"{WORDS[number % 6]} {WORDS[number % 5]} {number}" for number in range(64)]
    (folder / "p.jsonl").write_text("".join(json.dumps({"id": n, "prompt": p}) + "\n" for n, p in enumerate(prompts)))
    return folder


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_c35_a_file_of_64_prompts_is_answered_as_one_by_one(place: Path, tmp_path: Path) -> None:
    """Left-padded, greedy, float32; `-p` 64 times and once each give the same text as the file."""
    output = tmp_path / "o.jsonl"
    words = ("generate", "a", *SETTINGS)
    done = loraft(*words, "--input", "p.jsonl", "--output", str(output), "--batch-size", "16", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 64
    rows = rows_of(output)
    assert [{"id": row["id"], "prompt": row["prompt"]} for row in rows] == rows_of(place / "p.jsonl")
    prompts = [word for row in rows for word in ("-p", str(row["prompt"]))]
    together = json.loads(loraft(*words, *prompts, "--json", cwd=place).stdout)
    assert [each["completion"] for each in together] == [row["completion"] for row in rows]
    for row in rows[:8]:
        alone = json.loads(loraft(*words, "-p", str(row["prompt"]), "--json", cwd=place).stdout)
        assert (alone["completion"], alone["finish_reason"]) == (row["completion"], row["finish_reason"])


@pytest.mark.slow
def test_several_adapters_without_comparing_the_first_answers_and_that_is_said(place: Path) -> None:
    one = loraft("generate", "a", *SETTINGS, "-p", "the order", cwd=place)
    two = loraft("generate", "--adapter", "one=a", "--adapter", "two=b", *SETTINGS, "-p", "the order", cwd=place)
    assert two.stdout == one.stdout
    assert "note: one answers; two would with --compare" in two.stderr


@pytest.mark.slow
def test_comparing_shows_what_each_says_alone(place: Path) -> None:
    words = ("--adapter", "one=a", "--adapter", "two=b", *SETTINGS)
    done = loraft("generate", *words, "--compare", "-p", "the order", "-p", "so", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    for document, prompt in zip(json.loads(done.stdout), ("the order", "so"), strict=True):
        assert document["prompt"] == prompt
        for name, target in (("base", "base"), ("one", "a"), ("two", "b")):
            alone = json.loads(loraft("generate", target, *SETTINGS, "-p", prompt, "--json", cwd=place).stdout)
            assert document["completions"][name]["token_ids"] == alone["token_ids"]
    assert "no adapter to compare" in refused(loraft("generate", "base", "--compare", "-p", "x", cwd=place))


def test_a_bad_row_is_told_before_anything_is_loaded_and_nothing_is_written(place: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"prompt": 3}\n')
    told = refused(loraft("generate", "nobody/nothing", "--input", "p.jsonl", "--output", "o.jsonl", cwd=tmp_path))
    assert "p.jsonl:2 prompt: must be text" in told
    assert "nobody/nothing" not in told
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "mine.txt").write_text("mine")
    told = refused(loraft("generate", str(place / "a"), "--input", "p.jsonl", "--output", "mine.txt", cwd=tmp_path))
    assert "is no answer to the row of its number" in told
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "o.jsonl").exists()


HOSTILE_BASES = (
    "/etc/passwd",
    "/etc",
    "/root/.ssh",
    "~/.ssh",
    "../secret",
    "/proc/self/environ",
    "/nowhere/at/all",
    "\0",
    "a\nb",
)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("base", HOSTILE_BASES)
def test_c43_a_hostile_adapter_that_names_a_path_as_its_base(
    place: Path, tmp_path: Path, base: str, recorded: bool
) -> None:
    """One sentence and exit code 2; a folder that is no model is not looked into, and nothing is written."""
    (tmp_path / "work").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/config.json").write_text("secret")
    shutil.copytree(place / "a", tmp_path / "work/hostile")
    config = tmp_path / "work/hostile/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
    if not recorded:
        (tmp_path / "work/hostile/loraft.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told = refused(loraft("generate", "hostile", "-p", "hi", cwd=tmp_path / "work"))
    assert told.count("error: ") == 1
    assert "root:" not in told
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == before


@pytest.mark.slow
def test_c43_a_hostile_adapter_that_names_another_base(place: Path, tmp_path: Path) -> None:
    base_in(tmp_path / "other", seed=3)
    for record in (True, False):
        hostile = tmp_path / f"hostile-{record}"
        shutil.copytree(place / "a", hostile)
        config = hostile / "adapter_config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "other")})
        )
        if not record:
            (hostile / "loraft.json").unlink()
    told = refused(loraft("generate", "hostile-True", "-p", "hi", cwd=tmp_path))
    assert "trained on other base weights than these" in told
    told = refused(loraft("generate", str(place / "base"), "--adapter", "hostile-False", "-p", "hi", cwd=tmp_path))
    assert f"names {tmp_path / 'other'} as its base" in told
    assert "--base-model" in told
    shown = loraft("generate", "hostile-False", "-p", "hi", cwd=tmp_path)
    assert f"names {tmp_path / 'other'} as its base" in shown.stderr, "a base that nobody recorded is shown"


@pytest.mark.parametrize("name", ["/abs/x", "../x", "a/b", "..", ""])
def test_c28_an_adapters_name_is_never_a_path(place: Path, name: str) -> None:
    before = sorted(place.rglob("*"))
    told = refused(loraft("generate", "base", "--adapter", f"{name}=a", "-p", "hi", cwd=place))
    assert "cannot be an adapter's name" in told
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("words", [["x" * 5000], ["base", "--adapter", "x" * 5000], ["a", "--base-model", "x" * 5000]])
def test_names_longer_than_any_file_are_refused(place: Path, words: list[str]) -> None:
    refused(loraft("generate", *words, "-p", "hi", cwd=place))

"""Tokens that are kept for the next start: found when nothing changed, made anew when anything did."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import M2M100Tokenizer, PreTrainedTokenizerFast

from loraft.config.schema import RunConfig
from loraft.dataset import build as prepare
from loraft.dataset import source_rows as sources
from loraft.dataset import token_cache as kept
from loraft.dataset.build import PreparedData
from loraft.dataset.token_cache import KEPT, TokenCache
from loraft.tokenization.examples import Example
from tests.tiny import tiny_tokenizer


class Place:
    """A cache and a file of rows; counts how often rows are read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.rows, self.reads = folder / "cache", folder / "a.jsonl", 0
        self.write([row(f"q{number}", "a") for number in range(6)])
        read = sources.read_rows

        def counted(source: Any, most: int | None) -> Any:
            self.reads += 1
            return read(source, most)

        monkeypatch.setattr(sources, "read_rows", counted)

    def write(self, rows: list[Any]) -> None:
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prepared(self, task: str = "causal_lm", tokenizer: Any = None, **data: Any) -> PreparedData:
        section = {"train": str(self.rows), "eval": 0.4, **data}
        config = {"task": task, "model": {"name_or_path": "x"}, "data": section}
        return prepare.prepare(RunConfig.model_validate(config), tokenizer or tiny_tokenizer(), self.cache)

    @property
    def entries(self) -> list[Path]:
        return [entry for entry in (self.cache / KEPT).iterdir() if entry.is_dir()]


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def same(first: PreparedData, second: PreparedData) -> None:
    assert (first.train, first.eval) == (second.train, second.eval)
    assert first.fingerprint == second.fingerprint
    assert first.report == second.report
    assert first.renderer.recorded == second.renderer.recorded
    assert first.train_sources == second.train_sources


def test_c34_what_is_kept_follows_the_umask(place: Place) -> None:
    place.prepared()
    (entry,) = place.entries
    assert len({file.stat().st_mode for file in (*entry.iterdir(), place.rows)}) == 1


def test_a_second_start_reads_no_row_and_gives_the_same(place: Place) -> None:
    first = place.prepared()
    second = place.prepared()
    same(first, second)
    assert place.reads == 1


def test_equal_tokens_are_one_object(place: Place) -> None:
    for data in (place.prepared(), place.prepared()):
        numbers = [number for example in (*data.train, *data.eval) for number in (*example.input_ids, *example.labels)]
        assert max(numbers) > 256, "Python has the smaller ones once as it is"
        assert len({id(number) for number in numbers}) == len(set(numbers)) < len(numbers)
    assert place.reads == 1


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("seq2seq_lm", [{"source": f"yes {n}", "target": "oui"} for n in range(4)]),
        ("seq_cls", [{"text": f"yes {n}", "label": n % 3} for n in range(6)]),
    ],
)
def test_examples_of_every_task_are_kept(place: Place, task: str, rows: list[Any]) -> None:
    place.write(rows)
    same(place.prepared(task), place.prepared(task))
    assert place.reads == 1


def test_skipped_and_dropped_rows_are_told_again(place: Place) -> None:
    place.write([row("q", "a"), {"messages": []}, row("q" * 100, "a"), {**row("r", "b"), "id": 4}])
    options = {"max_length": 40, "on_bad_row": "skip"}
    first = place.prepared(**options)
    assert len(first.report.notes) >= 3
    same(first, place.prepared(**options))


def test_another_seed_or_share_draws_other_rows_from_the_same_tokens(place: Place) -> None:
    place.prepared()
    assert len(place.prepared(eval=0.2).eval) == 1
    assert place.reads == 1


def other_tokenizer() -> PreTrainedTokenizerFast:
    """The same name and the same size, another vocabulary."""
    changed = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    vocabulary = changed["model"]["vocab"]
    vocabulary["q"], vocabulary["z"] = vocabulary["z"], vocabulary["q"]
    tokenizer = tiny_tokenizer()
    from tokenizers import Tokenizer

    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(changed))
    return tokenizer


def test_a_change_of_anything_that_matters_is_noticed(place: Place, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(tiny_tokenizer().chat_template)
    seen = [place.prepared().fingerprint]
    place.prepared(chat_template=str(template))
    template.write_text(tiny_tokenizer().chat_template.replace("'<|im_end|>\\n'", "'!<|im_end|>\\n'"))
    seen.append(place.prepared(chat_template=str(template)).fingerprint)
    seen.append(place.prepared(tokenizer=other_tokenizer()).fingerprint)
    seen.append(place.prepared(train_on="all").fingerprint)
    stamp = place.rows.stat()
    place.write([row(f"q{number}", "b") for number in range(6)])
    os.utime(place.rows, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert place.rows.stat().st_size == stamp.st_size
    seen.append(place.prepared().fingerprint)
    assert len(set(seen)) == 5
    assert place.reads == 6


def in_python(folder: Path, *, turned: bool) -> M2M100Tokenizer:
    """A tokenizer that is no fast one: of the same class and size, its vocabulary in another order or not."""
    folder.mkdir()
    (folder / "text").write_text("hello the cat\nbonjour le chat\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), vocab_size=20, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))
    names = sorted(pieces.id_to_piece(number) for number in range(3, pieces.get_piece_size()))
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *(names[::-1] if turned else names)]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(vocabulary)}))
    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "m.model"))


def test_another_vocabulary_of_a_tokenizer_in_python_is_noticed(place: Place, tmp_path: Path) -> None:
    place.write([{"source": "hello the cat", "target": "bonjour le chat"} for _ in range(4)])
    one, other = (in_python(tmp_path / name, turned=name == "other") for name in ("one", "other"))
    again = M2M100Tokenizer(str(tmp_path / "one" / "vocab.json"), str(tmp_path / "one" / "m.model"))
    options = {"source_lang": "en", "target_lang": "fr"}
    first = place.prepared("seq2seq_lm", one, **options)
    assert place.prepared("seq2seq_lm", other, **options).train[0].input_ids != first.train[0].input_ids
    assert place.reads == 2
    same(first, place.prepared("seq2seq_lm", again, **options))
    assert place.reads == 2


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["rows/fields.py", "tokenization/__init__.py", "tasks/__init__.py",
                                  "dataset/__init__.py", "figures.py"])  # fmt: skip
def test_the_program_is_all_that_makes_tokens(tmp_path: Path, name: str) -> None:
    shutil.copytree(Path(kept.__file__).parents[1], tmp_path, dirs_exist_ok=True)
    assert kept._program(tmp_path) == kept._program()
    kept._program.cache_clear()
    with (tmp_path / name).open("a") as file:
        file.write("# changed")
    assert kept._program(tmp_path) != kept._program()


def test_a_change_of_the_program_is_noticed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.prepared()
    monkeypatch.setattr("loraft.dataset.token_cache._program", lambda: "changed")
    place.prepared()
    assert place.reads == 2


@pytest.mark.parametrize("file", ["rows.safetensors", "facts.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "bit"])
def test_damage_is_found_told_and_mended(place: Place, file: str, damage: str) -> None:
    first = place.prepared()
    path = place.entries[0] / file
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "bit": flipped}[damage])
    second = place.prepared()
    assert second.train == first.train
    assert "are damaged" in second.report.notes[0]
    assert place.prepared().report.notes == first.report.notes
    assert place.reads == 2


def test_c41_a_planted_pickle_does_not_run(place: Place) -> None:
    """C41: what is read is safetensors and JSON."""
    first = place.prepared()
    (place.entries[0] / "rows.safetensors").write_bytes(b"cos\nsystem\n(S'touch /tmp/loraft-planted'\ntR.")
    assert place.prepared().train == first.train
    assert not Path("/tmp/loraft-planted").exists()


def test_a_cache_that_cannot_be_written_costs_only_time(place: Place) -> None:
    place.cache.write_text("a file where a folder should be")
    assert any("could not be kept" in note for note in place.prepared().report.notes)


def test_what_a_killed_process_left_is_removed(place: Place) -> None:
    left = place.cache / KEPT / ".another.partial-1"
    left.mkdir(parents=True)
    (left / "rows.safetensors").write_bytes(b"half")
    place.prepared()
    assert not left.exists()


def test_old_entries_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.prepared()
    (old,) = place.entries
    os.utime(old, (0, 0))
    place.prepared(train_on="all")
    assert old not in place.entries
    monkeypatch.setattr(kept, "MOST_BYTES", 1)
    place.prepared(train_on="last")
    assert len(place.entries) == 1


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Each writes the same entry many times over; both end well, and one whole entry is there."""

    def keep_and_find() -> None:
        for _ in range(30):
            keeper = TokenCache(tmp_path, "key")
            keeper.keep([Example.of_text([1, 2], [-100, 2], "a:1")], {"x": 1})
            found = keeper.find()
            assert not keeper.notes, keeper.notes
            assert found is not None
            assert found[1] == {"x": 1}

    both = [multiprocessing.get_context("fork").Process(target=keep_and_find) for _ in range(2)]
    with warnings.catch_warnings():
        # From Python 3.12 on a fork of a process with threads warns; these children start none of their work.
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in both:
            process.start()
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    assert TokenCache(tmp_path, "key").find() is not None


def test_what_is_read_is_in_the_name_of_the_tokens(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    shutil.copy(place.rows, folder / "a.jsonl")
    given = [{"path": str(folder)}, {"path": str(folder), "limit": 4}, {"path": str(folder / "*.jsonl")}]
    made = [place.prepared(train=source) for source in given]
    assert [len(data.train) + len(data.eval) for data in made] == [6, 4, 6]
    assert len(place.entries) == place.reads == 3
    same(place.prepared(train=given[1]), made[1])
    assert place.reads == 3
    shutil.copy(place.rows, folder / "b.jsonl")
    assert len(place.prepared(train=given[0]).train) > 6
    (folder / "c.txt").write_text("one\ntwo\n\nthree")
    texts = {"train": str(folder / "c.txt"), "eval": None}
    assert [len(place.prepared(**texts, text_by=by).train) for by in ("line", "paragraph", "file")] == [3, 2, 1]

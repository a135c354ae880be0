"""Rows as they come: every row once an epoch, in an order that seed and epoch decide, from any place on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData, prepare
from loraft.dataset.sampler import StepBatches
from loraft.dataset.streaming import StreamingSampler
from loraft.dataset.token_cache import contents_of, identity_of
from loraft.errors import DataError
from tests.rows.files import compressed
from tests.tiny import tiny_tokenizer


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def prepared(train: Any, *, seed: int = 0, max_steps: int | None = None, **data: Any) -> PreparedData:
    section = {"train": train, "eval": None, "streaming": True, "shuffle_buffer": 10, **data}
    values = {"seed": seed, "model": {"name_or_path": "x"}, "data": section, "training": {"max_steps": max_steps}}
    return prepare(RunConfig.model_validate(values), tiny_tokenizer())


def places(data: PreparedData, epoch: int = 0) -> list[str]:
    assert data.stream is not None
    return [example.where for example, _, _ in data.stream.examples(epoch)]


def windows(data: PreparedData, epoch: int = 0, place: tuple[int, int] = (0, 0), size: int = 4) -> list[StepBatches]:
    assert data.stream is not None
    return list(StreamingSampler(data.stream, size, 2).windows([], epoch, 0, place))


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"q{number} ", "completion": "late " * (1 + number % 4)} for number in range(count)]


def as_csv(path: Path, given: list[dict[str, str]]) -> str:
    path.write_text("prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in given))
    return str(path)


def as_parquet(path: Path, given: list[dict[str, str]]) -> str:
    parquet.write_table(pyarrow.Table.from_pylist(given), path)
    return str(path)


@pytest.mark.parametrize(("name", "writer"), [("a.jsonl", write), ("a.csv", as_csv), ("a.parquet", as_parquet)])
def test_every_row_comes_once_an_epoch_as_it_is_without_a_stream(
    tmp_path: Path, name: str, writer: Callable[[Path, Any], str]
) -> None:
    path = writer(tmp_path / name, rows(137))
    data = prepared(path)
    assert data.report.train_rows == 137
    assert data.stream is not None
    whole = prepared(path, streaming=False).train
    come = sorted((example for example, _, _ in data.stream.examples(0)), key=lambda example: example.where)
    assert come == sorted(whole, key=lambda example: example.where)


def test_a_hub_dataset_comes_over_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(path: str, name: str | None, split: str, streaming: bool = False) -> Any:
        assert streaming, "it is not fetched first"
        return datasets.Dataset.from_list(rows(30)).to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(DataError, match="does not say how many rows") as caught:
        prepared("some/rows")
    assert caught.value.problems[0].key == "training.max_steps"
    data = prepared("some/rows", max_steps=5)
    assert data.report.train_rows is None
    assert sorted(places(data)) == sorted(f"some/rows: row {number}" for number in range(1, 31))


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(100))
    first = prepared(path)
    assert places(first) == places(prepared(path)) == places(first)
    assert places(first, 1) != places(first)
    assert places(prepared(path, seed=1)) != places(first)
    assert places(prepared(path, shuffle_buffer=1)) == [f"{path}:{number}" for number in range(1, 101)]


def test_a_row_comes_from_what_the_buffer_holds(tmp_path: Path) -> None:
    """The row drawn n-th is one of the first n + buffer."""
    come = places(prepared(write(tmp_path / "a.jsonl", rows(200))))
    numbers = [int(where.rpartition(":")[2]) for where in come]
    assert all(number <= drawn + 10 for drawn, number in enumerate(numbers, start=1))
    assert numbers != sorted(numbers)


def test_sources_are_mixed_by_what_is_left_of_them(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", rows(300)), write(tmp_path / "b.jsonl", rows(100))
    come = places(prepared([first, second]))
    assert len(set(come)) == 400
    for start in range(0, 400, 100):
        share = Counter(where.startswith(second) for where in come[start : start + 100])[True]
        assert 12 <= share <= 40


@pytest.mark.parametrize("options", [{}, {"max_length": 12}, {"max_length": 12, "on_overlength": "truncate"}])
def test_from_every_place_the_rest_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", [*rows(40), "{bad", *rows(23)])
    data = prepared(path, on_bad_row="skip", **options)
    whole = windows(data)
    for number, window in enumerate(whole[:-1]):
        rest = windows(data, place=window.place)
        assert [each.batches for each in rest] == [each.batches for each in whole[number + 1 :]]
    assert [window.ends_epoch for window in whole] == [False] * (len(whole) - 1) + [True]


def test_pieces_of_split_rows_are_gone_on_with_in_the_middle_of_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"the order number {number} " * 9} for number in range(12)])
    data = prepared(path, max_length=16, max_steps=3)
    assert data.report.train_rows == 12
    whole = windows(data, size=1)
    assert any(pieces for _, pieces in (window.place for window in whole))
    for number, window in enumerate(whole[:-1]):
        rest = windows(data, place=window.place, size=1)
        assert [each.batches for each in rest] == [each.batches for each in whole[number + 1 :]]
    with pytest.raises(DataError, match=r"training.max_steps: is needed, for rows are split"):
        prepared(path, max_length=16)


def test_c10_an_epoch_trains_on_every_token_in_the_steps_that_were_told(tmp_path: Path) -> None:
    """C10: the last window is a short one, and is not dropped."""
    path = write(tmp_path / "a.jsonl", rows(61))
    data = prepared(path)
    assert data.stream is not None
    come = windows(data)
    assert len(come) == StreamingSampler(data.stream, 4, 2).steps(0) == 8
    trained = sum(example.trained for window in come for batch in window.batches for example in batch)
    assert trained == sum(example.trained for example in prepared(path, streaming=False).train)


@pytest.mark.slow
def test_a_bad_row_stops_the_stream_with_its_line_or_is_counted(tmp_path: Path) -> None:
    late = write(tmp_path / "a.jsonl", [*rows(1200), "{bad", {"prompt": "", "completion": "x"}])
    data = prepared(late)
    assert "the first 1,000" in data.report.notes[0]
    with pytest.raises(DataError, match=r"a\.jsonl:120[12]"):
        places(data)
    skipping = windows(prepared(late, on_bad_row="skip"))
    (note,) = skipping[-1].notes
    counted, first = note.split("; the first bad one at ")
    assert counted == "of 1,202 rows drawn since this start, 2 bad"
    assert first.startswith((f"{late}:1201: is not JSON", f"{late}:1202: is empty"))
    assert not any(window.notes for window in skipping[:-1])


def test_what_is_found_in_the_rows_of_a_stream_is_counted(tmp_path: Path) -> None:
    given = [{"prompt": f"{number}<|im_end|>", "completion": "x"} for number in range(3)]
    notes = windows(prepared(write(tmp_path / "a.jsonl", given)))[-1].notes
    assert len(notes) == 1
    assert notes[0].startswith("of 3 rows drawn since this start, in 3: the control token <|im_end|>")


def test_a_stream_with_nothing_to_train_on_ends(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "a.jsonl", rows(1001)), max_length=40)
    assert data.stream is not None
    write(tmp_path / "a.jsonl", [{"prompt": "x" * 90, "completion": "y"}])
    with pytest.raises(DataError, match="no row of the stream can be trained on"):
        windows(data)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data": {"eval": 0.1}}, "data.eval"),
        ({"data": {"train": [{"path": "a.jsonl", "weight": 2.0}]}}, "data.train"),
        ({"data": {"packing": "fill"}}, "data.packing"),
        ({"training": {"group_by_length": True}}, "training.group_by_length"),
        ({"task": "seq_cls"}, "data.labels"),
        ({"task": "seq_cls", "data": {"labels": ["a", "b"]}, "training": {"class_weights": "balanced"}},
         "training.class_weights"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_stream_is_refused_by_key(change: dict[str, Any], key: str) -> None:
    data = {"train": "a.jsonl", "eval": None, "streaming": True, **change.get("data", {})}
    values = {"model": {"name_or_path": "x"}, **change, "data": data}
    with pytest.raises(ValidationError, match=r"data\.streaming reads rows as they come") as caught:
        RunConfig.model_validate(values)
    assert caught.value.errors()[0]["ctx"]["keys"][0] == key


def test_a_json_file_cannot_be_streamed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(rows(3)))
    with pytest.raises(DataError, match=r"write it as \.jsonl"):
        prepared(str(tmp_path / "a.json"))


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """Five times the rows: the peak of this process stays where it was (the buffer holds 1,000)."""
    program = """
import resource, sys
from tests.dataset.test_streaming import prepared, write
data = prepared(sys.argv[1], shuffle_buffer=1000)
count = sum(1 for _ in data.stream.examples(0))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = {}
    for count in (4_000, 20_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps({"prompt": f"q{number} ", "completion": "the order is late " * 5}) + "\n")
        told = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert int(told[0]) == count
        peaks[count] = int(told[1])
    assert peaks[20_000] < 1.05 * peaks[4_000]


def test_that_later_rows_may_be_split_is_said(tmp_path: Path) -> None:
    """Steps follow from the number of rows, and which of them become several is seen only as they come."""
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(3)))

    def notes(**training: int) -> str:
        values = {"model": {"name_or_path": "x"}, "training": training,
                  "data": {"train": str(file), "eval": None, "streaming": True}}  # fmt: skip
        return " ".join(prepare(RunConfig.model_validate(values), tiny_tokenizer()).report.notes)

    assert "as if no row were split" in notes()
    assert "as if no row were split" not in notes(max_steps=3)


def test_the_fingerprint_of_a_stream_outlives_a_change_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on after an update: what its rows are made from is the same. Kept tokens are made anew."""
    path = write(tmp_path / "a.jsonl", rows(5))
    config = RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": {"train": path, "eval": None}})
    sources = (config.data.train, ())
    contents = [contents_of(part) for part in sources]
    before = prepared(path).fingerprint, identity_of(config, sources, contents, tiny_tokenizer())
    monkeypatch.setattr("loraft.dataset.token_cache._program", lambda: "another")
    assert prepared(path).fingerprint == before[0]
    assert identity_of(config, sources, contents, tiny_tokenizer()) != before[1]


def test_without_shuffling_a_stream_keeps_the_order_of_its_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", rows(23)) for name in "ba"]
    data = prepared(paths, shuffle=False)
    order = [f"{path}:{line}" for path in paths for line in range(1, 24)]
    assert places(data, 0) == places(data, 1) == order
    whole = windows(data)
    assert [window.batches for window in windows(data, place=whole[1].place)] == [w.batches for w in whole[2:]]
    assert sorted(places(prepared(paths))) == sorted(order)


def test_a_stream_has_the_rows_that_a_limit_leaves(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(23))
    data = prepared([{"path": path, "limit": 9}, path])
    assert data.report.train_rows == 32
    assert Counter(places(data)) == Counter([f"{path}:{line}" for part in (9, 23) for line in range(1, part + 1)])
    assert any("its first 9 rows alone" in note for note in data.report.notes)


def test_compressed_rows_and_folders_are_streamed_as_the_plain_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = Path(write(tmp_path / "d/a.jsonl", rows(40)))
    plain = [example.input_ids for example, _, _ in prepared(str(path)).stream.examples(0)]  # type: ignore[union-attr]
    compressed(path, ".gz")
    for place in (tmp_path / "d", tmp_path / "d/a.jsonl.gz", tmp_path / "*/*.gz"):
        data = prepared(str(place))
        assert [example.input_ids for example, _, _ in data.stream.examples(0)] == plain  # type: ignore[union-attr]
    with pytest.raises(DataError, match="cannot be streamed"):
        prepared(str(compressed(Path(write(tmp_path / "a.json", [rows(3)])), ".gz")))


@pytest.mark.slow
def test_a_system_prompt_that_is_not_that_of_the_first_rows_is_told(tmp_path: Path) -> None:
    """That of the first rows is recorded, and answers are asked with it."""

    def row(*system: str) -> dict[str, Any]:
        turns = [("system", text) for text in system] + [("user", "late"), ("assistant", "fine")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    path = write(tmp_path / "a.jsonl", [*([row("one")] * 1000), row("two"), row("one"), row()])
    data = prepared(path)
    assert data.renderer.system_prompt == "one"
    assert len(places(data)) == 1003
    assert data.stream is not None
    (note,) = data.stream.notes()
    assert note.startswith(
        "of 1,003 rows drawn since this start, in 2: the system prompt is not that of the first rows"
    )
    assert not prepared(path, streaming=False).report.sources[0].findings

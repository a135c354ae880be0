"""Which rows each rank reads: all together every row once an epoch, whatever their number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import pyarrow
import pytest
from pyarrow import parquet

from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData, prepare
from loraft.dataset.sampler import BatchSampler, batch_sampler
from loraft.dataset.streaming import RowStream, StreamingSampler, streaming_sampler
from loraft.dataset.tokenize_rows import unpack
from loraft.distributed.ranks import Ranks
from loraft.errors import DataError, Problem
from tests.cli.running import loraft
from tests.distributed.forked import forked
from tests.distributed.part_memory import held_now
from tests.distributed.starting import TWO, done, torchrun
from tests.tiny import tiny_tokenizer

Result = TypeVar("Result")
MOST_ROWS, MOST_RANKS = 13, 4


def config(path: Path, *, streaming: bool, **data: Any) -> RunConfig:
    section = {"train": str(path), "eval": None, "streaming": streaming, "shuffle_buffer": 5, **data}
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    return RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": section, "training": training})


def written(path: Path, count: int, *more: str) -> Path:
    rows = [{"prompt": f"q{number} ", "completion": "late " * (1 + 7 * number % 5)} for number in range(count)]
    path.write_text("".join(f"{row}\n" for row in (*map(json.dumps, rows), *more)))
    return path


@dataclass
class Thread:
    """One of several threads that read a stream together."""

    rank: int
    world: int
    board: list[Any]
    barrier: Barrier
    own: int = 0

    def of_each(self, act: Callable[[], bytes]) -> list[bytes]:
        """What each of them gives."""
        self.board[self.rank] = given = act()
        self.own += len(unpack(given))
        self.barrier.wait(10)
        found = list(self.board)
        self.barrier.wait(10)
        return found


def in_threads(world: int, act: Callable[[Thread], Result]) -> list[Result]:
    board, barrier = [None] * world, Barrier(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(act, [Thread(rank, world, board, barrier) for rank in range(world)]))


def alone(data: PreparedData) -> RowStream:
    assert data.stream is not None
    return replace(data.stream, counts=Counter(), findings=Counter(), first_bad=[])


def drawn_by(world: int, path: Path, *, streaming: bool) -> tuple[PreparedData, BatchSampler]:
    """The rows of a file, and two batches of them a step for each rank."""
    given = config(path, streaming=streaming)
    data = prepare(given, tiny_tokenizer())
    return data, replace(batch_sampler(given, data.train, data.train_sources), accumulation=2 * world)


@pytest.mark.parametrize("world", range(1, MOST_RANKS + 1))
def test_c39_every_row_is_read_once_an_epoch(tmp_path: Path, world: int) -> None:
    """Uneven ends too: a rank that has fewer batches than others reads a row that counts nothing."""
    for count in range(1, MOST_ROWS + 1):
        data, drawn = drawn_by(world, written(tmp_path / f"{count}.jsonl", count), streaming=False)
        for epoch in range(2):
            windows = list(drawn.windows(data.train, epoch, 0, (0, 0)))
            assert len(windows) == drawn.steps(epoch)
            read: list[str] = []
            for window in windows:
                shares = [Ranks(rank, world).share(window, 2, filled=False) for rank in range(world)]
                assert len({len(share.batches) for share in shares}) == 1
                read += [row.where for share in shares for batch in share.batches[: share.counted] for row in batch]
            assert Counter(read) == Counter(example.where for example in data.train)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("world", range(2, MOST_RANKS + 1))
def test_c39_every_row_of_a_stream_is_tokenized_by_one_rank_and_read_once(tmp_path: Path, world: int) -> None:
    """Each rank looks into as many rows, give or take one, and all have the order of one."""
    for count in range(1, MOST_ROWS + 1):
        data, drawn = drawn_by(world, written(tmp_path / f"{count}.jsonl", count), streaming=True)
        by_one = list(StreamingSampler(alone(data), 2, 2 * world).windows([], 0, 0, (0, 0)))

        def read(reader: Thread, data: PreparedData = data, drawn: Any = drawn) -> tuple[Any, Counter[str], int]:
            sampler = streaming_sampler(alone(data), drawn, reader)
            return list(sampler.windows([], 0, 0, (0, 0))), sampler.stream.counts, reader.own

        found = in_threads(world, read)
        assert all(windows == by_one and counts["drawn"] == count for windows, counts, _ in found)
        own = [tokenized for *_, tokenized in found]
        assert sum(own) == count
        assert max(own) - min(own) <= 1
        windows = found[0][0]
        shares = [Ranks(rank, world).share(each, 2, filled=False) for each in windows for rank in range(world)]
        rows = [row.where for share in shares for batch in share.batches[: share.counted] for row in batch]
        assert len(rows) == len(set(rows)) == count


@pytest.mark.parametrize("on_bad_row", ["skip", "error"])
def test_a_bad_row_of_one_rank_is_known_to_all(tmp_path: Path, on_bad_row: str) -> None:
    """A row behind those that are looked at before a run begins."""
    path = written(tmp_path / "rows.jsonl", 9)
    data = prepare(config(path, streaming=True, on_bad_row=on_bad_row), tiny_tokenizer())
    written(path, 9, '{"prompt": 3, "completion": [1]}')

    def read(reader: Thread) -> tuple[Any, ...]:
        stream = replace(alone(data), readers=reader)
        try:
            return len(list(stream.examples(0))), stream.counts, stream.notes()
        except DataError as error:
            return error.problems

    found = in_threads(3, read)
    assert found == [found[0]] * 3
    assert "rows.jsonl:10" in str(found[0])
    assert isinstance(found[0][0], Problem) == (on_bad_row == "error")


@pytest.mark.slow
def test_a_stream_is_gone_on_with_and_its_bad_row_told_once(place: Path) -> None:
    """Ranks end by the same row, told once, save before, and have the bytes of one process with as many rows a step."""
    with (place / "train.jsonl").open("w") as file:
        for number in range(1040):
            answer = {"role": "assistant", "content": "b " * (1 + number % 9)}
            row = [{"role": "user", "content": "a"}, answer] if number < 1030 else 7
            file.write(json.dumps({"messages": row}) + "\n")
    stream = ["data.streaming=true", "data.shuffle=false", "data.eval=null", "lora.dropout=0"]
    sizes = ["training.max_steps=40", "training.save_steps=10", "training.per_device_train_batch_size=16"]
    words = ("train", "c.yaml", *stream, *sizes)
    by_one = loraft(*words, "training.gradient_accumulation_steps=2", "training.output_dir=one", cwd=place)
    ours = done(place, *words, *TWO)
    theirs = done(place, launch=torchrun(*words, "--resume"))
    assert (by_one.returncode, ours.returncode, theirs.returncode) == (2, 2, 1)
    for ended in (ours, theirs):
        assert errors_in(ended.stderr) == errors_in(by_one.stderr)
        assert len(errors_in(ended.stderr)) == 1, ended.stderr
        assert "rank 1" not in ended.stderr
    assert steps_of(place / "run") == steps_of(place / "one") != []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_is_flat_over_a_long_stream_of_many_files(tmp_path: Path, kind: str) -> None:
    """Two ranks read 20,000 rows of eight files, and hold those of the buffer: 10,000 would be 20 MB."""
    every = 2_500
    for file in range(8):
        rows = [{"prompt": f"{file} {number}", "completion": "late " * 30} for number in range(every)]
        if kind == "jsonl":
            (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{file}.parquet", row_group_size=2000)
    given = config(tmp_path, streaming=True, shuffle_buffer=500)

    def read(ranks: Ranks) -> tuple[int, int]:
        stream = replace(alone(prepare(given, tiny_tokenizer())), readers=ranks)
        held = [0, 0]
        for number, _ in enumerate(stream.examples(0)):
            if number % 500 == 0:
                second = number > 4 * every
                held[second] = max(held[second], held_now())
        assert number + 1 == stream.counts["drawn"] == 8 * every
        return held[0], held[1]

    for found in forked(2, read):
        assert not isinstance(found, str), found
        first, second = found
        assert second - first < 12 * 2**20


def errors_in(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


def steps_of(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], pytest.approx(line["loss"], abs=1e-4)) for line in lines if "grad_norm" in line]

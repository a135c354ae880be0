"""Rows to tokens in several processes: the same tokens in the same order, whatever their number.

Rendering a chat template is Python, so a second core helps only in a second process. Each is a fresh interpreter that
loads neither torch nor the caller's program: nothing is forked while threads run, and a script needs no guard around
its main part. It reads chunks of rows from its input and ends with it, so none is left when this process ends, whatever
ends it. Where one dies its chunk is done here.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from loraft.dataset.tokenize_rows import LengthPolicy, TokenizedRow, tokenize_rows
from loraft.rows.formats import Record
from loraft.tokenization.row_renderer import RowRenderer

CHUNK = 500
"""Rows that a process is given at a time."""
PAYS_FROM = 20_000
"""Rows from which starting processes takes less time than it saves."""
SERVE = "from loraft.dataset.processes import serve; serve()"

Process = subprocess.Popen[bytes]


def processes_for(setting: int | str, rows: int) -> int:
    """How many processes `data.num_proc` means for so many rows: this one alone counts as 1."""
    if isinstance(setting, int):
        return max(1, min(setting, -(-rows // CHUNK)))
    if rows < PAYS_FROM:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenized(
    renderer: RowRenderer, records: Sequence[Record], places: Sequence[str], wanted: LengthPolicy, processes: int
) -> list[TokenizedRow]:
    """What becomes of records, one outcome each in their order, found by so many processes."""
    if processes == 1:
        return tokenize_rows(renderer, records, places, wanted)
    starts = range(0, len(records), CHUNK)
    with _started(processes, pickle.dumps((renderer, wanted))) as free:

        def ask(start: int) -> list[TokenizedRow]:
            chunk = (records[start : start + CHUNK], places[start : start + CHUNK])
            process = free.get()
            try:
                return _answer(process, chunk)
            except (OSError, EOFError, pickle.UnpicklingError):
                return tokenize_rows(renderer, *chunk, wanted)
            finally:
                free.put(process)

        pool = ThreadPoolExecutor(processes)
        try:
            return [outcome for chunk in pool.map(ask, starts) for outcome in chunk]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _answer(process: Process, chunk: object) -> list[TokenizedRow]:
    assert process.stdin is not None
    assert process.stdout is not None
    pickle.dump(chunk, process.stdin)
    process.stdin.flush()
    found: list[TokenizedRow] = pickle.load(process.stdout)
    return found


@contextmanager
def _started(count: int, setting: bytes) -> Iterator[SimpleQueue[Process]]:
    """So many processes that know `setting`; they are gone afterwards."""
    free: SimpleQueue[Process] = SimpleQueue()
    # One thread a process: together they are as many as the cores.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]
    try:
        for process in started:
            assert process.stdin is not None
            with suppress(OSError):  # one that died already is found out when it is given work
                process.stdin.write(setting)
            free.put(process)
        yield free
    finally:
        for process in started:
            process.kill()
            process.communicate()


def serve() -> None:
    """Answer the chunks that come on standard input until it ends; Ctrl-C is for the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    renderer, wanted = pickle.load(sys.stdin.buffer)
    while True:
        try:
            records, places = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(tokenize_rows(renderer, records, places, wanted), answers)
        answers.flush()

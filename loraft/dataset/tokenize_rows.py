"""What becomes of a row on its way to tokens: examples, too long, nothing to train, or not rendered at all."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from queue import SimpleQueue
from typing import Any

from loraft.config.sections import DataSection, DataSource
from loraft.errors import DataError, Problem
from loraft.io.resources import usable_cores
from loraft.rows.formats import Record
from loraft.tokenization.examples import Example, RowRenderer, share_numbers
from loraft.tokenization.long_texts import ManyTokensError


@dataclass(frozen=True)
class LengthPolicy:
    """What the config says of the rows of a source.

    Attributes:
        limits: The section that says how long a row may be.
        done: What is done with a longer one: drop, truncate, split or error.
    """

    source: DataSource
    limits: DataSection
    done: str


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """What became of a row.

    Attributes:
        examples: The examples that it gives, those without a trained token left out.
        lengths: The tokens of each part of it before any is cut, of its sources where there are targets.
        target_lengths: The tokens of their targets.
        in_part: It is longer than these lengths say: a very long row is not counted to its end.
        too_long: How a part exceeds the limits; None where none does.
        untrained: It was kept, or cut, and no token is left to train.
        problems: Why it could not be rendered.
        findings: What a person should know of it, each with what can be done.
    """

    examples: tuple[Example, ...] = ()
    lengths: tuple[int, ...] = ()
    target_lengths: tuple[int, ...] = ()
    in_part: bool = False
    too_long: Problem | None = None
    untrained: bool = False
    problems: tuple[Problem, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the renderer made of a row, or of a part of one; `in_part` where that is a beginning."""

    text: Any
    in_part: bool = False


OF_EXAMPLE = attrgetter(*(field.name for field in fields(Example)))
OF_ROW = attrgetter(*(field.name for field in fields(TokenizedRow) if field.name != "examples"))
"""What is packed of an example, and of a row besides its examples: plain tuples pickle in two thirds of the time."""


def pack(rows: Sequence[TokenizedRow]) -> bytes:
    """Rows as bytes, for the others that read a stream."""
    return pickle.dumps([([*map(OF_EXAMPLE, row.examples)], OF_ROW(row)) for row in rows])


def unpack(packed: bytes) -> list[TokenizedRow]:
    """The rows that `pack` made bytes of, here or in another process of the same run."""
    rows = pickle.loads(packed)  # noqa: S301 - torch's own exchange between the ranks of a run, which pickles as well
    return [TokenizedRow(tuple(Example(*each) for each in examples), *rest) for examples, rest in rows]


def length_policy(source: DataSource, data: DataSection, row_format: str) -> LengthPolicy:
    """What `data` says of the rows of `source`: auto splits plain text and drops the rest."""
    auto = "split" if row_format == "text" else "drop"
    return LengthPolicy(source, data, auto if data.on_overlength == "auto" else data.on_overlength)


def tokenize_rows(
    renderer: RowRenderer, records: Sequence[Record], places: Sequence[str], wanted: LengthPolicy
) -> list[TokenizedRow]:
    """What becomes of records that stand in those places, one outcome each, in their order."""
    found: dict[int, TokenizedRow] = {}
    rendered: list[Rendered] = []
    of_record: list[int] = []
    for index, (record, place) in enumerate(zip(records, places, strict=True)):
        try:
            parts = [_rendered(renderer, part, wanted) for part in renderer.parts(record)]
        except DataError as error:
            found[index] = _unusable(error, place, wanted)
        except ManyTokensError as error:  # one unbroken text that is too long by any count
            message = f"has at least {error.fewest:,} tokens, more than the config takes"
            problem = Problem(message, where=place, remedy="write data.on_overlength: drop")
            found[index] = TokenizedRow(lengths=(error.fewest,), in_part=True, too_long=problem)
        else:
            rendered += parts
            of_record += [index] * len(parts)
    examples = _examples(renderer, rendered, [places[index] for index in of_record], wanted)
    rows: dict[int, list[tuple[Example, Rendered]]] = {}
    for index, example, read in zip(of_record, examples, rendered, strict=True):
        if isinstance(example, TokenizedRow):
            found.setdefault(index, example)
        else:
            rows.setdefault(index, []).append((example, read))
    return [found[i] if i in found else _outcome(renderer, rows[i], wanted) for i in range(len(records))]


def _rendered(renderer: RowRenderer, record: Record, wanted: LengthPolicy) -> Rendered:
    """A part of a record as text; of a row that is cut or dropped no more is read than that needs.

    Raises:
        DataError: It cannot be rendered, or read.
        ManyTokensError: It is too long by any count, and is dropped or refused.
    """
    whole = renderer.render(record)
    if wanted.done == "split":
        return Rendered(whole)
    try:
        beginning = renderer.beginning(whole, wanted.limits)
    except ManyTokensError as error:
        if wanted.done == "truncate":
            raise error.refusal from None
        raise
    return Rendered(beginning, in_part=beginning != whole)


def _examples(
    renderer: RowRenderer, rendered: Sequence[Rendered], where: Sequence[str], wanted: LengthPolicy
) -> list[Example | TokenizedRow]:
    """Each text as tokens, or why it cannot be read: of many the one at fault is looked for."""
    try:
        return list(renderer.examples([read.text for read in rendered], where))
    except DataError as error:
        if len(rendered) == 1:
            return [_unusable(error, where[0], wanted)]
        half = len(rendered) // 2
        first = _examples(renderer, rendered[:half], where[:half], wanted)
        return first + _examples(renderer, rendered[half:], where[half:], wanted)


def _unusable(error: DataError, place: str, wanted: LengthPolicy) -> TokenizedRow:
    return TokenizedRow(problems=placed(error, place, wanted.source.columns))


def placed(error: DataError, place: str, theirs: Mapping[str, str]) -> tuple[Problem, ...]:
    """What is wrong with the row at a place, in the names of its file; `theirs` has our column names: theirs."""
    return tuple(replace(each, where=place, key=theirs.get(each.key or "", each.key)) for each in error.problems)


def _outcome(renderer: RowRenderer, parts: Sequence[tuple[Example, Rendered]], wanted: LengthPolicy) -> TokenizedRow:
    pieces: list[Example] = []
    too_long: Problem | None = None
    for example, read in parts:
        exceeds = renderer.too_long(example, wanted.limits, least="more than " if read.in_part else "")
        if exceeds is None:
            pieces.append(example)
            continue
        if too_long is None:
            ways = "drop or truncate" if renderer.reads_source else "drop, truncate or split"
            remedy = f"raise it, or write data.on_overlength: {ways}"
            too_long = Problem(exceeds, where=example.where, remedy=remedy)
        if wanted.done in ("truncate", "split"):
            pieces += renderer.cut(read.text, example, wanted.limits, wanted.done)
    trained = tuple(piece for piece in pieces if piece.trained)
    findings = (finding for _, read in parts for finding in renderer.findings(read.text))
    return TokenizedRow(
        examples=trained,
        lengths=tuple(example.longest for example, _ in parts),
        target_lengths=tuple(example.longest_target for example, _ in parts if example.target_tokens),
        in_part=any(read.in_part for _, read in parts),
        too_long=too_long,
        untrained=bool(pieces) and not trained,
        findings=tuple(dict.fromkeys(findings)),
    )


CHUNK = 500
"""Rows that a process is given at a time."""
PAYS_FROM = 20_000
"""Rows from which starting processes takes less time than it saves."""
SERVE = "from loraft.dataset.tokenize_rows import serve; serve()"

Process = subprocess.Popen[bytes]


def processes_for(setting: int | str, rows: int) -> int:
    """How many processes `data.num_proc` means for so many rows: this one alone counts as 1."""
    if isinstance(setting, int):
        return max(1, min(setting, -(-rows // CHUNK)))
    if rows < PAYS_FROM:
        return 1
    return usable_cores()


def tokenized(
    renderer: RowRenderer, records: Sequence[Record], places: Sequence[str], wanted: LengthPolicy, processes: int
) -> list[TokenizedRow]:
    """What becomes of records, one outcome each in their order, found by so many processes.

    They are started as programs of their own: a fork would copy locks of threads and of the accelerator, and what
    multiprocessing spawns runs the caller's script once more where that has no guard around its main part.
    """
    known: dict[int, int] = {}
    starts = range(0, len(records), CHUNK)

    def chunk_at(start: int) -> tuple[Sequence[Record], Sequence[str]]:
        return records[start : start + CHUNK], places[start : start + CHUNK]

    if processes == 1:
        chunks = (tokenize_rows(renderer, *chunk_at(start), wanted) for start in starts)
        return [outcome for chunk in chunks for outcome in _sharing(chunk, known)]
    with _started(processes, pickle.dumps((renderer, wanted))) as free:

        def ask(start: int) -> list[TokenizedRow]:
            chunk = chunk_at(start)
            process = free.get()
            try:
                return _answer(process, chunk)
            except (OSError, EOFError, pickle.UnpicklingError):
                return tokenize_rows(renderer, *chunk, wanted)
            finally:
                free.put(process)

        pool = ThreadPoolExecutor(processes)
        try:
            return [outcome for chunk in pool.map(ask, starts) for outcome in _sharing(chunk, known)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _sharing(outcomes: list[TokenizedRow], known: dict[int, int]) -> list[TokenizedRow]:
    """The same, whose equal tokens are one object."""
    share_numbers((example for outcome in outcomes for example in outcome.examples), known)
    return outcomes


def _answer(process: Process, chunk: object) -> list[TokenizedRow]:
    assert process.stdin is not None
    assert process.stdout is not None
    pickle.dump(chunk, process.stdin)
    process.stdin.flush()
    found: list[TokenizedRow] = pickle.load(process.stdout)  # noqa: S301 - from a process that was started here
    return found


@contextmanager
def _started(count: int, setting: bytes) -> Iterator[SimpleQueue[Process]]:
    """So many processes that know `setting`; they are gone afterwards."""
    free: SimpleQueue[Process] = SimpleQueue()
    # One thread a process: together they are as many as the cores.
    found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOKENIZERS_PARALLELISM": "false"}
    command, pipe = [sys.executable, "-c", SERVE], subprocess.PIPE
    started = [
        subprocess.Popen(command, env={**os.environ, **found}, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
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
    renderer, wanted = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    with suppress(EOFError):
        while True:
            records, places = pickle.load(sys.stdin.buffer)  # noqa: S301 - likewise
            pickle.dump(tokenize_rows(renderer, records, places, wanted), answers)
            answers.flush()

"""Work on the next pieces while one is being written, in their order.

A piece is small, so each is one thread's work: splitting it would cost more than it gains, above all on a machine that
has other things to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from loraft.adapters.delta import Run

MOST_WORKERS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def working_ahead() -> Iterator[Run]:
    """Give a `map` that has several threads work on what is next; two results a thread wait at most."""
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    # Setting makes a pool of torch's own, which a fork of this process could not use: only where there is need.
    pool = ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1) if threads > 1 else None)

    def run(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        if threads > 1:
            torch.set_num_threads(threads)  # a worker's choice is also that of threads that begin later

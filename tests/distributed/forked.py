"""Ranks that are forked from this process, which has imported everything already."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
import torch.distributed as dist

from loraft.distributed.ranks import ALONE, Ranks

Result = TypeVar("Result")


def forked(
    world: int, act: Callable[[Ranks], Result], *, timeout: float = 60, machines: int = 1, barrier: bool = True
) -> list[Result | str]:
    """What `act` gives on each of `world` ranks, as many on each machine; of one that failed, its traceback.

    They leave together, where there is a `barrier`.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        children = {}
        for rank in range(world):
            number = os.fork()
            if number == 0:
                _be_rank(folder, rank, world, act, timeout, world // machines, barrier)
            children[rank] = number
        for number in children.values():
            os.waitpid(number, 0)
        files = (folder / str(rank) for rank in children)
        return [pickle.loads(file.read_bytes()) if file.exists() else "killed" for file in files]


def _be_rank(
    folder: Path,
    rank: int,
    world: int,
    act: Callable[[Ranks], object],
    timeout: float,
    of_machine: int,
    barrier: bool,
) -> None:
    """Act as a rank and leave; what is printed goes nowhere, for it is not this process's to say."""
    result: object = None
    try:
        torch.set_num_threads(1)
        local = rank % of_machine
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": of_machine}
        os.environ.update({name: str(number) for name, number in place.items()})
        ranks = ALONE
        if world > 1:
            store = dist.FileStore(str(folder / "store"), world)
            patience = timedelta(seconds=timeout)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
            ranks = Ranks(rank, world, local, of_machine)
        result = act(ranks)
        if barrier and dist.is_initialized():  # one that was interrupted has left
            dist.barrier()
    except BaseException:
        result = traceback.format_exc()
    (folder / f"{rank}.partial").write_bytes(pickle.dumps(result))
    (folder / f"{rank}.partial").rename(folder / str(rank))
    os._exit(0)

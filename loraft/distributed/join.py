"""How a process becomes one of several ranks, and what it says when it loses the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from loraft.config.distributed_section import DistributedSection
from loraft.distributed.pulse import Pulse
from loraft.distributed.rank_environment import RankEnvironment
from loraft.distributed.ranks import ALONE, Ranks
from loraft.distributed.roll_call import is_lost_contact, said_by_all, unreached
from loraft.errors import ResourceError
from loraft.figures import counted


@contextmanager
def joined(settings: DistributedSection) -> Iterator[Ranks]:
    """Join the others, where this process was started as one of several.

    Raises:
        ResourceError: There are more ranks on this machine than GPUs.
        LostRankError: Another rank could not be reached, or went away.
    """
    place = RankEnvironment.read()
    if place.world == 1:
        yield ALONE
        return
    _choose_gpu(place.local_rank, place.local_world)
    if place.world > place.local_world:
        _choose_interface()
    on_gpus = torch.cuda.is_available()
    patience = timedelta(seconds=settings.timeout_seconds)
    # NCCL ends a process that has waited too long: by then the others have been found silent, and it was said.
    backend, gradients = ("cpu:gloo,cuda:nccl", 2 * patience) if on_gpus else ("gloo", patience)
    begun_here = not dist.is_initialized()
    try:
        if begun_here:
            store, _, _ = next(rendezvous("env://", timeout=patience))
            # One that is started again would else find the addresses of those that were lost.
            ours = PrefixStore(f"start {place.restarts}", store)
            dist.init_process_group(backend, store=ours, rank=place.rank, world_size=place.world, timeout=gradients)
        beating = dist.new_group(backend="gloo", timeout=patience)
        prompt = dist.new_group(backend="gloo", timeout=patience) if on_gpus else None
        pulse = Pulse(beating)
        ranks = Ranks(**vars(place), pulse=pulse, prompt=prompt)
        processes = ranks.gathered(os.getpid())
    except Exception as error:
        if not is_lost_contact(error):
            raise
        raise unreached(place, settings.timeout_seconds) from error
    try:
        yield ranks
    except (Exception, KeyboardInterrupt) as error:
        pulse.stop()
        store = dist.distributed_c10d._get_default_store()
        raise said_by_all(error, store, place, settings.timeout_seconds, processes) from error
    pulse.stop()
    if begun_here:
        dist.destroy_process_group()


def _choose_gpu(local_rank: int, local_world: int) -> None:
    if not torch.cuda.is_available():
        return
    there = torch.cuda.device_count()
    if there < local_world:
        message = f"{local_world} ranks are to train on this machine, which has {counted(there, 'GPU')}"
        raise ResourceError(message, parameter="num_processes", remedy=f"start {there}")
    torch.cuda.set_device(local_rank)


def _choose_interface() -> None:
    """Have gloo talk to other machines through the interface by which the first one is reached.

    It would take the address of this machine's own name, which is often that of the loopback.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))  # sends nothing
        here = asked.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == here for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name

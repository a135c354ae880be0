"""The processes that train one run together, each called by its rank, and what they agree on; one alone agrees.

Only rank 0 speaks, names the run's folder and writes into it. What one rank meets is raised on all of them, so that
none waits for another that has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from loraft.config.schema import TrainingSection
from loraft.dataset.sampler import StepBatches
from loraft.distributed.pulse import Pulse
from loraft.distributed.rank_environment import RankEnvironment
from loraft.distributed.roll_call import of_rank, portable
from loraft.errors import LoraftError
from loraft.figures import counted
from loraft.io.patience import fetched_by_another
from loraft.kernels.transfer import to_device
from loraft.models.device import DeviceConfig
from loraft.tokenization.examples import Example

Result = TypeVar("Result")
COPIED_AT_ONCE = 64 * 2**20
"""How many bytes of weights, or of their gradients, are copied together, at least: a copy of all might not fit."""


class Share(NamedTuple):
    """What one rank reads of the batches of a step.

    Attributes:
        batches: As many on every rank.
        counted: How many of them count, the first ones: the others keep ranks in step.
    """

    batches: list[list[Example]]
    counted: int


@dataclass(frozen=True)
class Ranks(RankEnvironment):
    """The place of this process among those that train a run together; by itself the only one.

    Attributes:
        pulse: By it ranks wait patiently, as long as it takes and all are there; None waits as a group does.
        free: The least memory that is free on any rank's device; None is what this one finds.
        prompt: The group in which what ranks agree on is told; None is that of the gradients.
    """

    free: int | None = None
    pulse: Pulse | None = None
    prompt: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """How many machines there are, each with as many ranks."""
        return self.world // self.local_world

    def totals(self, *numbers: float) -> list[float]:
        """The sums over all ranks."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def greatest(self, *numbers: float) -> list[float]:
        """The greatest on any rank, of each."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Sequence[float], how: Any) -> list[float]:
        if self.world == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, how, group=self.prompt)
        return [float(value) for value in values]

    def gathered(self, value: Result) -> list[Result]:
        """The values of all ranks, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.prompt)
        return values

    def together(self, act: Callable[[], Result], *, patiently: bool = False, by_main: bool = False) -> Result:
        """What `act` gives on this rank; where it failed on one, every rank raises what that one did.

        Whose it was is said where that is not rank 0 for all (`by_main`).
        """
        if self.world == 1:
            return act()
        value, error = None, None
        try:
            value = act()
        except Exception as failed:
            error = failed
        self._require_none(error, patiently=patiently, by_main=by_main)
        return value  # type: ignore[return-value]

    def of_each(self, act: Callable[[], Result]) -> list[Result]:
        """What `act` gives on each rank; where it failed on one, every rank raises what that one did."""
        return self.gathered(self.together(act))

    def drawn_together(self, items: Iterator[Result]) -> Iterator[Result]:
        """The items, each of which every rank has before one goes on."""
        while (item := self.together(lambda: next(items, None))) is not None:
            yield item

    def on_main(self, act: Callable[[], Result], *, patiently: bool = False) -> Result:
        """What `act` gives on rank 0, which alone does it; the others wait for it."""
        found = self.together(act if self.main else _nothing, patiently=patiently, by_main=True)
        return self.gathered(found)[0]  # type: ignore[return-value]

    def first_on_each_machine(self, act: Callable[[], Result]) -> Result:
        """What `act` gives on this rank; one rank of a machine does it first, so that the others find its caches."""
        first = self.local_rank == 0
        found = self.together(act if first else _nothing, patiently=True, by_main=self.machines == 1)
        with nullcontext() if first else fetched_by_another():
            return self.together((lambda: found) if first else act, patiently=True)  # type: ignore[return-value]

    def _require_none(self, error: Exception | None, *, patiently: bool, by_main: bool) -> None:
        """Raise the error that the first rank to have one met, which is named where it is not rank 0 for all."""
        if patiently and self.pulse is not None:
            self.pulse.meet()
        found = torch.tensor([float(error is not None)])
        dist.all_reduce(found, group=self.prompt)
        if not found.item():
            return
        met = self.gathered(None if error is None else portable(error, self.rank))
        rank = next(rank for rank, each in enumerate(met) if each is not None)
        first = error if self.rank == rank else met[rank]
        assert first is not None, "it was chosen so"
        everywhere = by_main or (
            isinstance(first, LoraftError)
            and all(isinstance(each, LoraftError) and each.problems == first.problems for each in met)
        )
        if isinstance(first, LoraftError) and not everywhere:
            first = of_rank(first, rank, self.world)
        first.told_by_main = True  # type: ignore[attr-defined]
        raise first

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all ranks, each of which has divided by what all of them read.

        What no rank has a gradient of is left without one, and so no optimizer changes it.
        """
        if self.world == 1:
            return
        for bucket in buckets(parameters):
            _sum_bucket(bucket)

    def take_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have on rank 0: GPUs of another kind compute others."""
        for tensor in tensors if self.world > 1 else ():
            values = tensor.detach().contiguous()
            dist.broadcast(values, 0)
            tensor.detach().copy_(values)

    def share(self, window: StepBatches, size: int, *, filled: bool) -> Share:
        """What this rank reads of the batches of a step.

        Rows are dealt by their tokens, at most `size` to a batch; batches that are `filled` are dealt whole.
        """
        if self.world == 1:
            return Share(window.batches, len(window.batches))
        batches = window.batches
        if not filled:
            batches = deal_rows([row for batch in batches for row in batch], len(batches), size, self.world)
        return self.share_whole(batches)

    def share_whole(self, batches: Sequence[Sequence[Example]]) -> Share:
        """Every so manyth of the batches; where there are fewer than on other ranks, a row that counts nothing."""
        mine = [list(batch) for batch in batches[self.rank :: self.world]]
        idle = -(-len(batches) // self.world) - len(mine)
        shortest = min((row for batch in batches for row in batch), key=lambda row: row.tokens)
        return Share([*mine, *([shortest] for _ in range(idle))], len(mine))

    def share_of(self, placement: DeviceConfig) -> DeviceConfig:
        """A device with the memory that is this rank's: as much for all, and those of a machine share main memory."""
        free = placement.available_bytes if self.free is None else self.free
        return replace(placement, available_bytes=free // self.local_world if placement.device == "cpu" else free)

    def with_least_free(self, free: int) -> Ranks:
        """The same for planning, where each rank says what is free on its device: they plan for the least."""
        return self if self.world == 1 else replace(self, free=int(-self.greatest(-free)[0]))

    def notes(self, training: TrainingSection, batches: int, trained: int) -> Iterator[str]:
        """What there is to say of who reads the batches of a step, and of the `trained` numbers that they sum."""
        size, asked = training.per_device_train_batch_size, training.gradient_accumulation_steps * self.world
        begun = "" if batches == asked else f", as the run was begun: here it would have been {asked}"
        read = f"a step reads {counted(batches, 'batch', 'batches')} of at most {size} rows{begun}"
        if self.world > 1:
            on = f"on {counted(self.machines, 'machine')}" if self.machines > 1 else "on this machine"
            summed = f"{gradient_bytes(trained) / 1e6:.1f} MB of gradients are summed"
            yield f"{self.world} ranks train together {on}: {read}, and {summed}"
        elif begun:
            yield read

    def seed(self, seed: int, step: int) -> None:
        """Draw what a step draws by the seed, the step and the rank: ranks that resume need not keep generators."""
        if self.world > 1:
            drawn = np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(drawn[0] >> np.uint64(1)))


ALONE = Ranks()


class Wishes:
    """What signals ask for; what they ask one of several ranks for, all grant at the same place.

    Attributes:
        stop: The signal that asks for the end; 0 is none.
        save: Whether one asks for a checkpoint.
    """

    def __init__(self, ranks: Ranks, stops: Sequence[int], saves: list[int]) -> None:
        self._ranks, self._stops, self._saves = ranks, stops, saves
        self.stop, self.save = 0, False

    def share(self) -> Wishes:
        """Look at the signals that have come to any rank."""
        stop, save = self._ranks.greatest(next(iter(self._stops), 0), len(self._saves))
        self.stop, self.save = int(stop), bool(save)
        return self

    def granted(self) -> None:
        """A checkpoint was saved."""
        self._saves.clear()
        self.save = False


def gradient_bytes(trained: int) -> int:
    """The bytes that a rank gives the others in a step, of so many trained numbers, all of which are float32."""
    return trained * 4


def deal_rows(rows: Sequence[Example], batches: int, size: int, world: int) -> list[list[Example]]:
    """The rows of so many batches, as batches of at most `size` whose tokens differ little between the `world` ranks.

    Batch i is of rank i modulo `world`, and each rank has as many. The longest row goes first, each to the rank that
    has the fewest tokens so far among those with room, and there into its batch that has the fewest.
    """
    batches = -(-batches // world) * world
    dealt: list[list[Example]] = [[] for _ in range(batches)]
    tokens = [0] * batches
    of_rank = [0] * world
    for row in sorted(rows, key=lambda row: -row.tokens):
        open_ = [at for at in range(batches) if len(dealt[at]) < size]
        at = min(open_, key=lambda at: (of_rank[at % world], tokens[at], at))
        dealt[at].append(row)
        tokens[at] += row.tokens
        of_rank[at % world] += row.tokens
    return [batch for batch in dealt if batch]


def buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in order, some at a time: as many as are copied at once."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(each.nbytes for each in bucket) >= COPIED_AT_ONCE:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _sum_bucket(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients as one tensor, behind which stands how many ranks have one of each parameter."""
    found = [parameter.grad is not None for parameter in parameters]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), _as_numbers(found, gradients[0])])
    dist.all_reduce(flat)
    *parts, ranks = torch.split(flat, [*(gradient.numel() for gradient in gradients), len(parameters)])
    anywhere = found if all(found) else [number > 0 for number in ranks.tolist()]
    for parameter, gradient, summed, is_there in zip(parameters, gradients, parts, anywhere, strict=True):
        gradient.copy_(summed.view_as(gradient))
        parameter.grad = gradient if is_there else None


def _as_numbers(found: Sequence[bool], like: Tensor) -> Tensor:
    """Ones and zeros beside a tensor; where all are ones the host waits for no copy of them."""
    if all(found):
        return like.new_ones(len(found))
    return to_device(torch.tensor(found, dtype=like.dtype), like.device)


def _nothing() -> None:
    """What ranks do meanwhile that only wait."""

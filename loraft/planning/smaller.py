"""Changes of a config that save memory: which there are, what each costs, and what it would free of a planned run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from loraft.config.change_config import with_values
from loraft.config.choices import Method
from loraft.config.config_file import inline
from loraft.config.schema import RunConfig, of_streamed_layers
from loraft.dataset.sampler import batch_sampler
from loraft.distributed.ranks import Ranks
from loraft.errors import InvalidInputError
from loraft.kernels.transfer import has_own_memory
from loraft.models.model_structure import ids_of
from loraft.planning.known_run import summarize_model
from loraft.planning.memory import MemoryPlan
from loraft.planning.run_plan import RunPlan, scaled_rate
from loraft.planning.strategy import spread

SMALLER_METHODS: Mapping[Method, tuple[Method, ...]] = {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}
COSTS = {
    "training.optim": "its state is rounded to 8 bits",
    "training.per_device_train_batch_size": "the same steps, in more and smaller batches",
    "training.gradient_checkpointing": "each layer is computed twice",
    "training.tiled_mlp": "feed-forward parts are computed some tokens at a time, twice",
    "method": "another method of training",
    "model.stream_layers": "each step brings every layer to the GPU, twice a batch",
}
"""What each change costs, from the one that costs the least speed to the one that costs the most."""
CHECKPOINTING, BATCH, LENGTH = (
    "training.gradient_checkpointing", "training.per_device_train_batch_size", "data.max_length",
)  # fmt: skip
OFFLOADED = "each layer is computed twice, from what the host keeps for it"
SHORTENED = "what data.on_overlength says is done to longer rows"
Values = Mapping[str, str | float | bool]


class Alternatives(NamedTuple):
    """What else a config may say, by what is changed; the first of each is no change.

    Attributes:
        methods: Smaller methods of training.
        again: What is computed again.
        fewer: Fewer rows in a batch, and as many in a step.
        states: A smaller state of the optimizer.
    """

    methods: Sequence[Values]
    again: Sequence[Values]
    fewer: Sequence[Values]
    states: Sequence[Values]


def alternatives(config: RunConfig, *, beside_host: bool) -> Alternatives:
    """What else a config may say to save memory, on a device that is `beside_host` or not."""
    training = config.training
    rows, together = training.per_device_train_batch_size, training.gradient_accumulation_steps
    methods: list[Values] = [{}]
    for method in SMALLER_METHODS[config.method]:
        rate = training.learning_rate
        methods.append({"method": method})
        if rate != "auto" and (others := scaled_rate(rate, config.method, method)) != rate:
            methods[-1] = {"method": method, "training.learning_rate": others}
    again: list[Values] = [{}]
    if training.gradient_checkpointing is False:
        again.append({CHECKPOINTING: True})
    if training.gradient_checkpointing != "offload" and beside_host:
        again.append({CHECKPOINTING: "offload"})
    if training.tiled_mlp is False:
        again += [{**changes, "training.tiled_mlp": "auto"} for changes in again]
    smaller = (rows // parts for parts in range(2, rows + 1) if rows % parts == 0)
    fewer: list[Values] = [
        {},
        *({BATCH: each, "training.gradient_accumulation_steps": together * rows // each} for each in smaller),
    ]
    states: list[Values] = [{}]
    if training.optim in ("auto", "adamw"):
        states.append({"training.optim": "adamw_8bit"})
    return Alternatives(methods, again, fewer, states)


def costs_of(changes: Values) -> tuple[str, ...]:
    """What each of some changes costs, a sentence's part each."""
    costs = {**COSTS, LENGTH: SHORTENED}
    if changes.get(CHECKPOINTING) == "offload":
        costs[CHECKPOINTING] = OFFLOADED
    return tuple(cost for key, cost in costs.items() if key in changes)


def hinders_streaming(config: RunConfig, changes: Values) -> bool:
    """Whether the layers of the changed config cannot be fed to the GPU."""
    return any(hinders for hinders, *_ in of_streamed_layers(with_values(config, changes)))


@dataclass(frozen=True)
class FreedMemory:
    """A change of a planned run, and the bytes of the device's memory that it frees."""

    changes: Values
    freed: int

    @property
    def words(self) -> str:
        """The change, what it frees and what it costs."""
        values = " with ".join(f"{name}: {inline(value)}" for name, value in self.changes.items())
        size = f"{self.freed / 1e9:.1f} GB" if self.freed >= 5e7 else f"{self.freed / 1e6:.1f} MB"
        return f"{values} frees {size} ({' and '.join(costs_of(self.changes))})"


def most_saving(plan: RunPlan, ranks: Ranks, count: int, *, evaluates: bool = False) -> list[FreedMemory]:
    """The changes, at most `count`, that would free the most of a planned run, each by itself, the most first.

    Of a step, or where the run `evaluates` of what is held all the while, beside which nothing is kept there.
    """
    held = _held_always if evaluates else _held_in_a_step
    before = held(memory_with(plan, {}, ranks))
    found = []
    for changes in _single_changes(plan):
        try:
            found.append(FreedMemory(changes, before - held(memory_with(plan, changes, ranks))))
        except (InvalidInputError, OSError):  # the run cannot be so, or the model's files have gone meanwhile
            continue
    return sorted((each for each in found if each.freed > 0), key=lambda each: -each.freed)[:count]


def memory_with(plan: RunPlan, changes: Values, ranks: Ranks) -> MemoryPlan:
    """The memory of a planned run with some values of its config changed, planned anew from its rows as they are.

    A shorter `data.max_length` cuts them: nothing is tokenized again.

    Raises:
        InvalidInputError: The run cannot be so.
    """
    config, data = with_values(plan.config, changes), plan.data
    if config.data.max_length != plan.config.data.max_length:
        data = replace(data, train=[example.cut(config.data.max_length) for example in data.train])
    shape = plan.shape
    if (config.method, config.model) != (plan.config.method, plan.config.model):
        tokens = ids_of(data.renderer.tokenizer, config.model.add_tokens)
        shape = summarize_model(config, plan.model, data.renderer.labels, tokens)
    changed = replace(plan, config=config, data=data, shape=shape)
    drawn = batch_sampler(config, data.train, data.train_sources)
    return spread(changed, drawn, plan.layout, ranks, pages=False)[1]


def _held_in_a_step(memory: MemoryPlan) -> int:
    """The bytes of a step; those of the process are another number each time that it is asked."""
    return memory.peak_bytes - memory.runtime


def _held_always(memory: MemoryPlan) -> int:
    return memory.weights + memory.adapter + memory.optimizer


def _single_changes(plan: RunPlan) -> Iterator[Values]:
    """The smallest change of each kind."""
    config, beside_host = plan.config, has_own_memory(plan.placement.device)
    for kind in alternatives(config, beside_host=beside_host):
        yield from kind[1:2]
    if config.training.tiled_mlp is False and plan.shape.feed_forward:
        yield {"training.tiled_mlp": True}
    longest = max(example.longest for example in plan.data.train)
    if longest >= 4:
        yield {LENGTH: min(longest, config.data.max_length) // 2}
    fed: Values = {"model.stream_layers": True}
    if beside_host and not config.model.stream_layers and not hinders_streaming(config, fed):
        yield fed

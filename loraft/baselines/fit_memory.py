"""The changes of a config that make a run fit into a GPU's memory, the ones that cost the least speed first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from loraft.config.change_config import with_values
from loraft.config.config_file import inline, takes_path
from loraft.config.schema import RunConfig
from loraft.distributed.ranks import ALONE, Ranks
from loraft.errors import InvalidInputError, ResourceError
from loraft.kernels.transfer import has_own_memory
from loraft.models.device import StatedDevice, select_device
from loraft.models.remote_code import as_trusted
from loraft.planning.planned_memory import too_large
from loraft.planning.run_plan import RunPlan, plan_run
from loraft.planning.smaller import Values, alternatives, costs_of, hinders_streaming


@dataclass(frozen=True)
class Fitting:
    """What a config becomes so that its run fits.

    Attributes:
        changes: The values to change, by their keys; none where it fits as it is.
        plan: The run with these changes.
    """

    changes: Values
    plan: RunPlan

    @property
    def costs(self) -> tuple[str, ...]:
        """What each change costs, a sentence's part each."""
        return costs_of(self.changes)

    @property
    def words(self) -> str:
        """The changes, what is needed with them, and what they cost."""
        values = ", ".join(f"{name}: {inline(value)}" for name, value in self.changes.items())
        return f"{values} in {self.plan.memory.peak_bytes / 1e9:.1f} GB ({' and '.join(self.costs)})"


@as_trusted
@takes_path
def fit_memory(config: RunConfig, *, gpu_memory: int | None = None, trust_remote_code: bool = False) -> Fitting:
    """The changes of a config that cost the least speed and make its run fit.

    Args:
        config: The run, or the path of its file.
        gpu_memory: Into a CUDA GPU of so many bytes, instead of into this machine.
        trust_remote_code: Run the code that the model brings.

    Raises:
        ResourceError: No such change is enough.
        InvalidInputError: The run cannot be, whatever memory there is.
    """
    return _fitting(config, None if gpu_memory is None else StatedDevice("cuda", gpu_memory), ALONE)


def _fitting(config: RunConfig, stated: StatedDevice | None, ranks: Ranks) -> Fitting:
    """The same for several that train together, of which those on a CPU share its memory."""
    device = select_device(config.model, stated).device
    for changes in _in_order_of_cost(config, beside_host=has_own_memory(device)):
        try:
            plan = plan_run(with_values(config, changes), stated, ranks=ranks)
        except InvalidInputError:
            if not changes:
                raise
            continue  # the run cannot be so
        message = too_large(plan, plan.memory)
        if message is None:
            return Fitting(changes, plan)
    key, needs, memory = "model.name_or_path", "a smaller model or a shorter data.max_length", plan.memory
    if memory.adapter and 2 * (memory.adapter + memory.gradients + memory.optimizer) > memory.peak_bytes:
        key, needs = "lora.r", "a smaller lora.r, or fewer modules in lora.target_modules and lora.modules_to_save"
    remedy = f"It takes {needs}: a smaller batch or another method is not enough."
    if ranks.local_world > 1 and device == "cpu":
        remedy = f"Fewer processes share the memory of this machine. {remedy}"
    raise ResourceError(f"at its smallest {message}", key=key, remedy=remedy)


def require_memory(config: RunConfig, plan: RunPlan, stated: StatedDevice | None = None, ranks: Ranks = ALONE) -> None:
    """Refuse a run that is foreseen not to fit, with what makes it fit the device and the ranks that it is planned for.

    Raises:
        ResourceError: More is needed than is available.
    """
    message = too_large(plan, plan.memory)
    if message is None:
        return
    fitting = _fitting(config, stated, ranks)
    if not fitting.changes:  # the memory of this machine that others held was freed meanwhile
        return
    raise ResourceError(message, key=next(iter(fitting.changes)), remedy=f"It fits with {fitting.words}.")


def _in_order_of_cost(config: RunConfig, *, beside_host: bool) -> Iterator[Values]:
    """All combinations, from no change on; a smaller method is tried when nothing else is enough.

    Layers are fed from the host's memory when that is not enough either, where the device is `beside_host`.
    """
    methods, again, fewer, states = alternatives(config, beside_host=beside_host)
    if not config.model.stream_layers:
        yield from _merged(product(methods, again, fewer, states))
    if config.model.stream_layers or beside_host:  # each batch brings every layer: more of them are the dearest change
        fed: list[Values] = [{} if config.model.stream_layers else {"model.stream_layers": True}]
        for changes in _merged(product(fed, methods, fewer, again, states)):
            if not hinders_streaming(config, changes):
                yield changes


def _merged(alternatives: Iterable[tuple[Values, ...]]) -> Iterator[Values]:
    return ({key: value for part in parts for key, value in part.items()} for parts in alternatives)

"""A run before its first step: every `auto` resolved, every problem found, every number known.

`check` shows the plan, and `train` carries it out: what one refuses, the other refuses. It loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from loraft.adapters.computed_starts import require_tokens
from loraft.adapters.effect import begins_as_the_base
from loraft.adapters.model_card import shown
from loraft.config.change_config import with_values
from loraft.config.choices import Method
from loraft.config.schema import RunConfig, TrainingSection
from loraft.dataset.sampler import BatchSampler, batch_sampler, chunks, fills, uses_packing
from loraft.dataset.streaming import StreamingSampler, streaming_sampler
from loraft.distributed.ranks import ALONE, Ranks
from loraft.errors import ConfigError
from loraft.figures import counted
from loraft.kernels.tiled_mlp import TILE
from loraft.kernels.transfer import has_own_memory
from loraft.models.device import StatedDevice
from loraft.models.hf_config import noise_of
from loraft.models.modules import is_within
from loraft.models.registry import FAMILIES
from loraft.optimization.optimizer import require_optimizer, resolve_optim
from loraft.optimization.schedule import require_schedule
from loraft.planning.known_run import KnownRun, ModelSummary, known_run
from loraft.planning.memory import MemoryPlan
from loraft.planning.planned_memory import Saving
from loraft.planning.strategy import spread
from loraft.tasks.batches import BatchLayout
from loraft.tasks.frozen_prefix import KEY, kept_positions, why_not_kept

LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
LINE_STEP, BINARY_DIGITS = 32, 4
"""Of lines of rows end to end, and of the length of padded lines: on a CPU the kernels of 16-bit products are made anew
for each length and kept, which costs more than some padding."""
CAPPED = "{} caps the scores of attention, which are written out row by row: a row takes memory by its length squared"
CAPPED_AT_ONCE = "{} caps the scores of attention: flex attention is compiled for them, and tried before the first step"
TILED = f"training.tiled_mlp auto is on: without it, {TILE:,} tokens at a time, the run would not fit in memory"
CHECKPOINTED = "training.gradient_checkpointing auto is on: without it the run would not fit in memory"


@dataclass(frozen=True, eq=False)
class RunPlan(KnownRun):
    """A run, decided.

    Attributes:
        batches: Which rows share a batch.
        layout: How they are laid.
        eval_every: Steps between evaluations; None is the end of each epoch.
        save_every: Steps between checkpoints; None is the end of each epoch.
        frozen_prefix_bytes: What the kept output of frozen layers takes on disk.
    """

    batches: BatchSampler | StreamingSampler
    layout: BatchLayout
    memory: MemoryPlan
    steps: int
    eval_every: int | None
    save_every: int | None
    frozen_prefix_bytes: int = 0

    @property
    def checkpoints(self) -> int:
        """The checkpoints on the disk at once: those that are kept, the best one and the one being written, or all.

        All are those that are due, an epoch being as long as the first; evaluations that are better may save more, for
        which a run that keeps all of them has no room set aside.
        """
        keep, an_epoch = self.config.training.save_total_limit, self.batches.steps(0)
        due = math.ceil(self.steps / (self.save_every or an_epoch))
        if keep is None:
            return due
        save_more = self.data.eval and self.eval_every != self.save_every
        better = math.ceil(self.steps / (self.eval_every or an_epoch)) if save_more else 0
        return min(due + better, keep + 2)

    @property
    def rereads_rows(self) -> bool:
        """Whether rows that are held here are read in more than one epoch."""
        return self.data.stream is None and self.steps > self.batches.steps(0)


def plan_run(
    config: RunConfig, stated: StatedDevice | None = None, *, ranks: Ranks = ALONE, batches_a_step: int | None = None
) -> RunPlan:
    """Decide everything about a run that can be decided before its weights are loaded.

    It is planned for a device that is stated, or for this machine's; whether it fits there is not asked. Where the run
    is gone on with, `batches_a_step` are those that all ranks read in a step, as it was begun.

    Raises:
        InvalidInputError: With every problem that was found, of the model and of the data.
    """
    chosen_by_itself = config.training.optim == "auto"
    known = _on_its_device(_resolved(known_run(config, stated)), ranks)
    _require_tiles(known)
    config, data, layout = known.config, known.data, _layout(known)
    drawn = _sampler(known, batches_a_step or config.training.gradient_accumulation_steps * ranks.world)
    if data.stream is None and config.lora.init == "eva" and (targets := known.shape.targets) is not None:
        require_tokens(max(targets.ranks.values()), (data.train[row] for batch in drawn.epoch(0) for row in batch))
    batches = drawn if data.stream is None else streaming_sampler(data.stream, drawn, ranks)
    known, memory, saving, spread_notes = spread(known, drawn, layout, ranks, pages=chosen_by_itself)
    config = known.config
    _require_whole_reference(known, ranks)
    memory_notes = [*spread_notes, *_saving_notes(config.training, saving)]
    training = config.training.model_copy(update=saving.settings)
    steps = steps_of(config, batches)
    known = replace(
        known,
        config=config.model_copy(update={"training": training}),
        notes=(
            *known.notes,
            *_packing_notes(known, drawn, packed=layout.packed),
            *memory_notes,
            *_host_notes(memory),
            *require_schedule(training, steps),
            *ranks.notes(config.training, drawn.accumulation, known.shape.trainable_parameters),
            *base_notes(config),
        ),
    )
    return RunPlan(
        **vars(known),
        batches=batches,
        layout=layout,
        memory=memory,
        steps=steps,
        eval_every=_every(training.eval_steps, steps),
        save_every=_every(training.save_steps, steps),
        frozen_prefix_bytes=frozen_prefix_bytes(known, drawn, layout, steps, ranks),
    )


def _sampler(known: KnownRun, accumulation: int) -> BatchSampler:
    drawn = batch_sampler(known.config, known.data.train, known.data.train_sources)
    if not drawn.epoch(0):
        message = "an epoch draws no row: each source's rows times its weight are less than half a row"
        raise ConfigError(message, key="data.train", remedy="write greater weights")
    return replace(drawn, accumulation=accumulation)


def _saving_notes(asked: TrainingSection, saving: Saving) -> Iterator[str]:
    """What is done to save memory, where it was not asked for; and what was asked for in vain."""
    if saving.gradient_checkpointing and asked.gradient_checkpointing == "auto":
        yield CHECKPOINTED
    if saving.tiled_mlp and asked.tiled_mlp == "auto":
        yield TILED
    if saving.tiled_mlp and not saving.splits:
        yield f"training.tiled_mlp changes nothing: no planned batch has more than the {TILE:,} tokens of a tile"


def _require_tiles(known: KnownRun) -> None:
    if known.config.training.tiled_mlp is True and not known.shape.feed_forward:
        why = f"no feed-forward part of type {known.shape.family.model_type} is known to compute token by token alone"
        raise ConfigError(why, key="training.tiled_mlp", remedy="write auto")


def _require_whole_reference(known: KnownRun, ranks: Ranks) -> None:
    """Refuse to keep what is trained as it began where each rank has a part of it."""
    if ranks.world == 1 or known.config.distributed.strategy != "fsdp2" or not known.task.has_reference(known.config):
        return
    if not begins_as_the_base(known.config.lora, known.shape.targets):
        why = "fsdp2 holds parts, and the reference is what is trained as it began, which is kept whole"
        remedy = "write ddp, or begin anew with lora.start_from: null and lora.init: default"
        raise ConfigError(why, key="distributed.strategy", remedy=remedy)


def _on_its_device(known: KnownRun, ranks: Ranks) -> KnownRun:
    """The same with a rank's part of the device, and what is said of a GPU alone as it is where there is none."""
    known = replace(known, placement=ranks.share_of(known.placement))
    if has_own_memory(known.placement.device):
        return known
    config, notes = known.config, list(known.notes)
    if config.model.stream_layers:
        notes.append("model.stream_layers changes nothing on a CPU: the layers are in main memory as it is")
    if config.training.gradient_checkpointing == "offload":
        notes.append("training.gradient_checkpointing offload is true on a CPU: all that is kept is in main memory")
        config = with_values(config, {"training.gradient_checkpointing": True})
    return replace(known, config=config, notes=tuple(notes))


def _host_notes(memory: MemoryPlan) -> Iterator[str]:
    if memory.host_weights:
        yield f"model.stream_layers: the layers take {memory.host_weights / 1e9:.1f} GB of main memory"
    if memory.host_inputs:
        size = f"{memory.host_inputs / 1e9:.1f} GB of main memory"
        yield f"training.gradient_checkpointing offload: what goes into the layers takes {size}"


def _packed(known: KnownRun) -> bool:
    """Whether rows lie end to end; that they are to be filled and cannot lie so is refused."""
    family = known.shape.family
    packed = uses_packing(known.config, packs=family.packs)
    if fills(known.config) and not packed:
        why, auto = "filled rows need the attention that keeps rows apart", "model.attn_implementation"
        if not family.packs:
            why, auto = f"rows of {family.model_type} cannot be laid end to end", "packing"
        raise ConfigError(why, key="data.packing", remedy=f"write {auto}: auto")
    return packed


def _layout(known: KnownRun) -> BatchLayout:
    in_16_bits_on_cpu = known.placement.device == "cpu" and known.placement.dtype != torch.float32
    pad_id, packed = known.data.renderer.tokenizer.pad_token_id, _packed(known)
    return BatchLayout(
        packed,
        pad_id if isinstance(pad_id, int) else 0,
        multiple_of=LINE_STEP if in_16_bits_on_cpu else 1,
        binary_digits=BINARY_DIGITS if in_16_bits_on_cpu and known.config.training.kernels == "auto" else 0,
        most=max(known.task.length_limits(known.config.data).values()),
        shares=packed and shares_prefix(known),
    )


def shares_prefix(known: KnownRun) -> bool:
    """Whether what all rows of a batch begin with can be computed once: on a CPU, where nothing is drawn for each.

    Types that are not in the table of families may tell rows apart by their positions, which go on here at a gap.
    """
    config, training = known.config, known.config.training
    if config.data.shared_prefix == "off" or known.placement.device != "cpu":
        return False
    if known.shape.family.model_type not in FAMILIES:
        return False
    drawn = training.neftune_noise_alpha is not None or (config.method != "full" and config.lora.dropout > 0)
    if drawn or training.router_aux_loss_coef:
        return False
    return noise_of(known.shape.config) is None


def base_notes(config: RunConfig) -> Iterator[str]:
    """An adapter names its base as the config does, and a path of this machine means nothing on another."""
    name = config.model.name_or_path
    if config.method != "full" and shown(name) != name:
        said = "where that is not, `base_model=MODEL` says where the base is"
        yield f"the adapter names its base by a path of this machine, {name}: {said}"


def _resolved(known: KnownRun) -> KnownRun:
    """The same without the `auto`s that decide what is computed, and with what there is to say about them."""
    config, training, dtype = known.config, known.config.training, str(known.placement.dtype).removeprefix("torch.")
    usual = float(f"{LEARNING_RATES[config.method] * known.task.rate_share:g}")
    rate = usual if training.learning_rate == "auto" else training.learning_rate
    optim, note = resolve_optim(training, device=known.placement.device)
    asks = config.method == "qlora" and config.quantization.compute_dtype == "auto"
    compute = dtype if asks else config.quantization.compute_dtype
    values = {
        "model.dtype": dtype,
        "quantization": known.shape.quantization or config.quantization,
        "quantization.compute_dtype": compute,
        "training.learning_rate": rate,
        "training.optim": optim,
        "training.router_aux_loss_coef": known.shape.router_aux_loss_coef,
    }
    settled = with_values(config, values)
    if not known.placement.stated:
        require_optimizer(settled.training, known.placement.device)
    notes = [*([note] if note else []), *_optimizer_notes(known.shape, config, settled.training)]
    if training.learning_rate == "auto":
        of_task = "" if known.task.rate_share == 1 else f" and task {config.task}"
        notes.append(f"training.learning_rate auto is {rate:g} for method {config.method}{of_task}")
    if training.max_steps is not None and "num_train_epochs" in training.model_fields_set:
        notes.append(f"training.max_steps {training.max_steps} decides; num_train_epochs is not used")
    notes = [*known.notes, *known.data.renderer.notes, *notes, *known.data.report.notes]
    return replace(known, config=settled, notes=tuple(notes))


def _optimizer_notes(shape: ModelSummary, config: RunConfig, settled: TrainingSection) -> Iterator[str]:
    """What is trained by another rule than the rest."""
    rate = settled.learning_rate
    assert rate != "auto", "it is settled"
    if settled.optim == "muon":
        hidden = sum(tensor.hidden for tensor in shape.trained)
        others = counted(len(shape.trained) - hidden, "other tensor")
        rest = f", AdamW the {others}" if hidden < len(shape.trained) else ", and there is nothing else"
        yield f"training.optim muon: Muon trains {counted(hidden, 'matrix', 'matrices')} inside the layers{rest}"
    if settled.optim == "lion_8bit" and config.training.learning_rate == "auto":
        yield "Lion's steps are as long as the rate: a third to a tenth of AdamW's learning rate is usual"
    if config.method != "full" and config.lora.plus_ratio != 1:
        ratio = config.lora.plus_ratio
        yield f"lora.plus_ratio {ratio:g}: B learns at {rate * ratio:g}, all else at {rate:g}"


def scaled_rate(rate: float, before: Method, after: Method) -> float:
    """A rate that is set for one method as another takes it: as the defaults of the two stand to one another."""
    return float(f"{rate * LEARNING_RATES[after] / LEARNING_RATES[before]:.6g}")


def steps_of(config: RunConfig, batches: BatchSampler | StreamingSampler) -> int:
    """All optimizer steps of a run."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    whole, part = divmod(config.training.num_train_epochs, 1)
    last = math.ceil(part * batches.steps(int(whole))) if part else 0
    return sum(batches.steps(epoch) for epoch in range(int(whole))) + last


def _every(setting: float | None, steps: int) -> int | None:
    if setting is None:
        return None
    return max(1, round(setting * steps)) if setting < 1 else int(setting)


def frozen_prefix_bytes(
    known: KnownRun, drawn: BatchSampler, layout: BatchLayout, steps: int, ranks: Ranks = ALONE
) -> int:
    """The bytes of what the frozen layers give for every batch that a run reads; 0 where it is not kept.

    Raises:
        ConfigError: It cannot be kept.
    """
    training, shape = known.config.training, known.shape
    if not training.cache_frozen_prefix:
        return 0
    if ranks.world > 1:
        why = f"reads the batches of one process again, and {ranks.world} train together"
        raise ConfigError(why, key=KEY, remedy="write false")
    inside = shape.family.layers_path
    adapted = () if shape.targets is None else (*shape.targets.modules, *shape.targets.saved)
    outside = [name for name in adapted if not is_within(name, inside)]
    if why := why_not_kept(known.config, shape.family, shape.frozen_layers, outside, noise_of(shape.config)):
        raise ConfigError(why, key=KEY, remedy="write false")
    size, read = training.per_device_eval_batch_size, drawn.epoch(0)[: steps * drawn.accumulation]
    held_out = [example.input_ids for example in known.data.eval]
    batches = [[known.data.train[row].input_ids for row in batch] for batch in read]
    batches += chunks(held_out, size)
    hidden = next(iter(shape.layers.values())).hidden
    return kept_positions(batches, layout) * hidden * known.placement.dtype.itemsize


def _packing_notes(known: KnownRun, drawn: BatchSampler, *, packed: bool) -> list[str]:
    if fills(known.config):
        before, filled = replace(drawn, fill_to=None).steps(0), drawn.steps(0)
        remain = counted(filled, "optimizer step an epoch remains", "optimizer steps an epoch remain")
        return [f"data.packing fill: {remain} of {before:,}"] if filled != before else []
    if known.config.data.packing == "auto" and not packed and known.task.packs:
        model_type = known.shape.family.model_type
        return [f"rows are padded on the right: {model_type} is not laid end to end with this attention"]
    facts = known.shape.config
    if packed and getattr(facts, "attn_logit_softcapping", None) is not None and known.placement.device == "cuda":
        at_once = known.config.training.kernels == "auto" and not getattr(facts, "attention_dropout", 0.0)
        return [(CAPPED_AT_ONCE if at_once else CAPPED).format(known.shape.family.model_type)]
    return []

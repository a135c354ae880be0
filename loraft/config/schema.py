"""The config as a whole and how it is trained; each description is also what `loraft schema` shows in an editor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from loraft.config.choices import (
    DEFAULT_TASK,
    OF_ANSWERS,
    TASKS_OF_GROUP,
    Auto,
    Checkpointing,
    Method,
    OptimName,
    TaskName,
)
from loraft.config.distributed_section import DistributedSection
from loraft.config.preference_section import SMOOTHED, PreferenceSection
from loraft.config.schedules import ScheduleKwargs, ScheduleName, StepsOrShare, StepsOrShareOrNull, misfits
from loraft.config.sections import (
    OF_CAUSAL_LM,
    Allowed,
    DataSection,
    LoraSection,
    ModelSection,
    Names,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    QuantizationSection,
    Section,
    Share,
    UsedBy,
)

OF_LMS = UsedBy(*TASKS_OF_GROUP["decoder"], *TASKS_OF_GROUP["encoder_decoder"])


Contradictions = Iterator[tuple[bool, str, str, str]]
"""Whether values that are each allowed do not go together, why, and their keys, of which the first is named."""


class TrainingSection(Section):
    """The run: how long, how fast, what is kept."""

    output_dir: Annotated[str, Field(min_length=1)] | None = None
    """The folder of the run; null is runs/CONFIGNAME-N with the next free N."""
    num_train_epochs: PositiveFloat = 3
    """How often each row is seen; a part of an epoch, such as 0.5, will do. Not used where max_steps is set."""
    max_steps: PositiveInt | None = None
    """The number of optimizer steps, whatever num_train_epochs says; null leaves it to that."""
    per_device_train_batch_size: PositiveInt = 8
    """Rows in a batch, packed or not; with packing fill, filled rows."""
    per_device_eval_batch_size: PositiveInt = 8
    """Rows in a batch of an evaluation."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches in an optimizer step: its gradient is that of one batch with all their rows."""
    learning_rate: Auto | PositiveFloat = "auto"
    """The peak rate, after the warm-up; auto is 2e-4 for lora and qlora, 2e-5 for full; for preferences a tenth."""
    lr_scheduler_type: ScheduleName = "cosine"
    """How the rate falls after the warm-up: along a line or half a cosine towards 0 at the end, or not at all. The
    other names are transformers' own schedules to the number, whose warm-up begins at a rate of 0."""
    lr_scheduler_kwargs: ScheduleKwargs | None = None
    """The numbers of the schedules that have some, such as {min_lr_rate: 0.1}; null for the others."""
    warmup_steps: StepsOrShare = 0.03
    """Steps in which the rate rises to its peak, linearly; below 1 it is a share of all steps, rounded up."""
    weight_decay: NonNegativeFloat = 0.0
    """The decoupled weight decay, of every optimizer; vectors, such as norms and biases, do not decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """The norm that the gradient of a step is clipped to; null does not clip."""
    adam_beta1: Share = 0.9
    """The first beta of AdamW, Lion and AdEMAMix."""
    adam_beta2: Share = 0.999
    """The second beta of AdamW, Lion and AdEMAMix."""
    group_by_length: bool = False
    """Put rows of like length into one batch (fewer padded positions, a less random order). Not used by packing
    fill."""
    optim: OptimName = "auto"
    """AdamW with its state in 32 bits or, in a quarter of the memory, in 8; paged_ moves that state to main memory
    while the GPU is short of its own, and is unpaged on a CPU. adafactor keeps a number for each row and column, Lion
    and AdEMAMix one and three bytes for each weight; muon is Muon for matrices inside the layers and AdamW for all
    else. auto is adamw, and paged_adamw_32bit for qlora on CUDA where adamw is foreseen not to fit."""
    label_smoothing_factor: Share = 0.0
    """What of each target is spread evenly over the vocabulary, or over the classes, such as 0.1: the training loss
    that is logged is then that of the smoothed targets. An evaluation measures the targets themselves."""
    router_aux_loss_coef: Annotated[Auto | NonNegativeFloat, OF_CAUSAL_LM] = 0.0
    """How much the auxiliary loss of a mixture's routers, which has them use all experts alike, counts beside the loss:
    0 leaves it out, auto is what the model's own config says. Padding does not count in it, the batches of a step count
    by their tokens, and an evaluation measures the loss alone."""
    neftune_noise_alpha: PositiveFloat | None = None
    """NEFTune, such as 5: noise on the embeddings while training, drawn evenly from ±alpha / √(length · width), the
    length being that of the row itself, packed or padded. null adds none, and padding never gets any."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens at a step whose loss or gradient is NaN or infinite: stop ends the run before the update; skip
    leaves the update out, names the rows, counts it, and ends the run at the fifth such step in a row, or where no
    step could be taken. An evaluation that is not finite ends the run in either case."""
    gradient_checkpointing: Auto | Checkpointing = "auto"
    """Recompute activations in the backward pass: less memory, more time. auto does so only where the run would
    otherwise be predicted to need more than 90 % of the memory that is free. offload keeps what goes into each layer,
    from which it is computed again, in the host's memory besides; on a CPU it is true."""
    try_longest_batch: Auto | bool = "auto"
    """Try the longest batch before the first step, forward, backward and update, and the longest of the evaluation, so
    that memory runs out then, and not hours later; all is put back to the bit. auto does so where the device has memory
    of its own: it takes the time of a step."""
    kernels: Literal["auto", "plain"] = "auto"
    """What training computes with: plain is torch's own operations; auto is loraft's fused kernels for norms, rotary
    positions and gated products on CUDA, each of which is tried on the GPU before the first step and taken where its
    numbers are those of the plain form, and on a CPU its own dropout, and its own attention where rows are padded."""
    tiled_mlp: Auto | bool = "auto"
    """Compute the feed-forward part of a layer 4,096 tokens at a time, so that what is inside it never stands there for
    a whole long row; the backward pass computes it anew. auto does so where the run would otherwise be predicted not to
    fit into the memory that is free, after gradient_checkpointing. Gradients are summed in another order."""
    cache_frozen_prefix: bool = False
    """Keep on disk what the frozen layers below the lowest trained one give, in the run's folder until the run ends,
    and read it from the second epoch on: the same losses in less time. Needs data.shuffle batches or false, by which
    batches stay the same."""
    logging_steps: PositiveInt = 10
    """Optimizer steps between two lines of metrics."""
    eval_steps: StepsOrShareOrNull = None
    """Optimizer steps between evaluations; below 1 a share of all steps; null is once an epoch. The last step is
    evaluated in any case."""
    save_steps: StepsOrShareOrNull = None
    """Optimizer steps between checkpoints; below 1 a share of all steps; null is once an epoch. The best evaluation,
    the last step and a stop are saved in any case."""
    save_total_limit: PositiveInt | None = 3
    """How many checkpoints are kept, the newest ones; the best one is kept besides. null keeps all."""
    metric_for_best_model: Literal["loss", "accuracy", "macro_f1"] = "loss"
    """The evaluation metric by which the best checkpoint is chosen: loss, for seq_cls accuracy or macro_f1, and for
    preference accuracy, the share of pairs whose better answer has the higher reward."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, PositiveFloat] | None,
        Allowed("balanced, a mapping of every label to its weight, or null"),
        UsedBy("seq_cls"),
    ] = None
    """What a row of each class counts in the loss: balanced is rows / (classes · rows of the class), so that classes
    count alike; null lets rows count alike."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better one. With it the best weights are the result; null
    trains to the end, and the last ones are."""
    sample_prompts: Annotated[Names, OF_LMS] = ()
    """Prompts answered greedily at every evaluation, shown and stored in samples.jsonl."""
    report_to: Names = ()
    """Trackers to report to, besides metrics.jsonl: tensorboard, wandb, mlflow, trackio and others that accelerate
    knows. Their packages have to be installed."""
    push_to_hub: str | None = None
    """OWNER/NAME of a repository of the Hub into which what was trained is put once the run has ended; it is made,
    private, where it is not there. That somebody is logged in is asked before the first step."""
    project: str | None = None
    """The project's name in a tracker; null is loraft."""
    run_name: str | None = None
    """The run's name in wandb, mlflow, trackio and swanlab; null is the name of the run's folder."""


class GenerationSection(Section):
    """The defaults of answers, saved with what was trained."""

    max_new_tokens: PositiveInt = 256
    """The most tokens that an answer may have, those to sample_prompts included."""
    temperature: NonNegativeFloat | None = None
    """0 is greedy, above 0 draws, the more freely the higher it is; null is the base's own."""


def _contradictions(config: RunConfig) -> Contradictions:
    """Whether values that are each allowed do not go together, why, and their keys, of which the first is named."""
    task, data, training = config.task, config.data, config.training
    cut = data.on_overlength == "split" and task != "causal_lm"
    yield cut, f"rows of task {task} cannot be split: drop or truncate them", "data.on_overlength", "task"
    whole = data.split_turns and data.train_on == "all"
    why = "makes a row of each answer, and data.train_on: all trains every token"
    yield whole, why, "data.split_turns", "data.train_on"
    metric = training.metric_for_best_model
    measured = "classifiers" if metric != "accuracy" else "classifiers and of two answers"
    why = f"{metric} is measured of {measured}, and the task is {task}"
    unmeasured = metric != "loss" and task != "seq_cls" and (metric != "accuracy" or task not in OF_ANSWERS)
    yield unmeasured, why, "training.metric_for_best_model", "task"
    share, balanced = isinstance(data.eval, float), training.class_weights == "balanced"
    unnamed = task == "seq_cls" and not data.labels
    for key, needs_all_rows, reason in (
        ("data.eval", share, "a share of the rows cannot be held out (name a file, or write null)"),
        ("data.train", any(source.weight != 1 for source in data.train), "weights need all rows of a source"),
        ("data.packing", data.packing == "fill", "fill chooses among all rows"),
        ("training.group_by_length", training.group_by_length, "rows are sorted among many"),
        ("training.class_weights", balanced, "balanced counts the rows of each class (write the weights)"),
        ("data.labels", unnamed, "the classes are those of all rows (name them)"),
        ("data.shuffle", data.shuffle == "batches", "batches draws among all rows"),
    ):
        why = f"{reason}, and data.streaming reads rows as they come"
        yield data.streaming and needs_all_rows, why, key, "data.streaming"
    for why in misfits(training.lr_scheduler_type, training.lr_scheduler_kwargs):
        yield True, why, "training.lr_scheduler_kwargs", "training.lr_scheduler_type"
    for key, orders in (
        ("training.group_by_length", training.group_by_length),
        ("data.packing", data.packing == "fill"),
    ):
        why = "orders rows by their length, and data.shuffle: false keeps the order of the files"
        yield not data.shuffle and orders, why, key, "data.shuffle"
    drawn = data.shuffle == "batches" and any(source.weight % 1 for source in data.train)
    why = "draws a part of a source anew in each epoch, and data.shuffle: batches keeps what the first one drew"
    yield drawn, why, "data.train", "data.shuffle"
    yield from _of_the_adapter(config)
    yield from of_streamed_layers(config)
    for key in config.distributed.of_shards:
        yield config.distributed.strategy == "ddp", "is of fsdp2", key, "distributed.strategy"
    yield from _of_the_frozen_prefix(config)
    yield from _of_preferences(config)
    endless = training.early_stopping_patience is not None and data.eval is None
    yield endless, "needs an evaluation, and data.eval is null", "training.early_stopping_patience", "data.eval"


def _of_the_frozen_prefix(config: RunConfig) -> Contradictions:
    """The same, of what the frozen layers give: it can be read again where a batch comes again as it was."""
    data, training, key = config.data, config.training, "training.cache_frozen_prefix"
    for hinders, why, other in (
        (config.task != "causal_lm", f"is of causal_lm, and the task is {config.task}", "task"),
        (data.streaming, "reads batches again, and data.streaming reads rows as they come", "data.streaming"),
        (data.shuffle is True, "needs batches that stay the same (write data.shuffle: batches)", "data.shuffle"),
        (
            training.neftune_noise_alpha is not None,
            "reads what does not change, and noise is drawn anew each time",
            "training.neftune_noise_alpha",
        ),
        (
            training.router_aux_loss_coef != 0,
            "leaves frozen layers out, and the auxiliary loss is of the routers of all",
            "training.router_aux_loss_coef",
        ),
    ):
        yield training.cache_frozen_prefix and hinders, why, key, other


def _of_preferences(config: RunConfig) -> Contradictions:
    """The same, of the section `preference`."""
    asked, training, key = config.preference, config.training, "preference.loss"
    other = "" if asked.loss == "kto" else ", or loss: orpo"
    fills = config.data.packing == "fill" and config.task in TASKS_OF_GROUP["decoder"]
    rows_a_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    for is_so, why, first, second in (
        (
            asked.has_reference and config.method == "full",
            f"{asked.loss} compares with the base, which method: full does not keep (write lora{other})",
            "method",
            key,
        ),
        (
            asked.label_smoothing > 0 and asked.loss not in SMOOTHED,
            f"is of {', '.join(sorted(SMOOTHED))}, and the loss is {asked.loss}",
            "preference.label_smoothing",
            key,
        ),
        (
            asked.loss == "kto" and training.metric_for_best_model == "accuracy",
            "accuracy is of pairs, and kto learns from single answers (write loss)",
            "training.metric_for_best_model",
            key,
        ),
        (
            asked.loss == "kto" and rows_a_step == 1 and not fills,
            "is 1, and so is gradient_accumulation_steps: kto compares the rows of a step, and needs 2",
            "training.per_device_train_batch_size",
            key,
        ),
        (
            training.label_smoothing_factor > 0,
            "is of rows that are learned, and answers are compared (write preference.label_smoothing)",
            "training.label_smoothing_factor",
            "task",
        ),
    ):
        yield config.task in OF_ANSWERS and is_so, why, first, second


def _of_the_adapter(config: RunConfig) -> Contradictions:
    """The same, of the section `lora`."""
    lora = config.lora
    computed = lora.init not in ("default", "gaussian")
    why = f"{lora.init} begins anew, and the adapter of lora.start_from has begun already (write default)"
    yield computed and lora.start_from is not None, why, "lora.init", "lora.start_from"
    why = f"loftq begins with what 4 bits leave out, and method is {config.method}"
    yield lora.init == "loftq" and config.method == "lora", why, "lora.init", "method"
    for key, what in of_modules_alone(lora):
        why = f"{what}, and lora.target_parameters adapts parameters"
        yield bool(lora.target_parameters), why, key, "lora.target_parameters"


def of_streamed_layers(config: RunConfig) -> Contradictions:
    """The same, of layers that are fed to the GPU: what is not frozen has to stay there, and a start reads them all."""
    lora, key = config.lora, "model.stream_layers"
    for hinders, why, other in (
        (config.method == "full", "feeds frozen layers, and method: full trains them", "method"),
        (lora.use_dora, "leaves weights on the host, and DoRA begins with the norms of all of them", "lora.use_dora"),
        (
            lora.init not in ("default", "gaussian", "eva"),
            f"leaves weights on the host, and lora.init: {lora.init} begins with what is in all of them",
            "lora.init",
        ),
        (
            config.method == "qlora" and config.quantization.type == "int8",
            "feeds weights in 4 or 16 bits (write nf4)",
            "quantization.type",
        ),
        (
            config.training.cache_frozen_prefix,
            "feeds every layer, those that training.cache_frozen_prefix leaves out too",
            "training.cache_frozen_prefix",
        ),
    ):
        yield config.model.stream_layers and hinders, why, key, other


def of_modules_alone(lora: LoraSection) -> Iterator[tuple[str, str]]:
    """The keys of a section that say what can be had of linear modules, and not of parameters; and why."""
    if lora.init not in ("default", "gaussian"):
        yield "lora.init", f"{lora.init} begins with linear modules"
    if lora.dropout > 0:
        yield "lora.dropout", "dropout is of a module's inputs"
    if lora.use_dora:
        yield "lora.use_dora", "DoRA is of linear modules"


class RunConfig(Section):
    """One run of loraft, whole."""

    task: TaskName = DEFAULT_TASK
    """What is learned: causal_lm (decoders go on with a text), preference (they learn which of two answers is better),
    seq2seq_lm (encoder-decoders answer a source), seq2seq_preference (they learn which of two answers is better), or
    seq_cls (a text gets a label)."""
    method: Method = "lora"
    """lora (small updates beside frozen weights), qlora (the same beside weights in 4 bits) or full (every weight)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The seed of every random choice: rows held out, their order, the start of an adapter or a head, dropout."""
    model: ModelSection
    quantization: Annotated[QuantizationSection, UsedBy("qlora")] = QuantizationSection()
    lora: Annotated[LoraSection, UsedBy("lora", "qlora")] = LoraSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    preference: Annotated[PreferenceSection, UsedBy(*OF_ANSWERS)] = PreferenceSection()
    generation: Annotated[GenerationSection, OF_LMS] = GenerationSection()
    distributed: DistributedSection = DistributedSection()

    @model_validator(mode="after")
    def _goes_together(self) -> RunConfig:
        for is_so, message, *keys in _contradictions(self):
            if is_so:
                raise PydanticCustomError("contradiction", "{message}", {"message": message, "keys": keys})
        return self

"""The config as a frozen value whose fields document themselves.

Every description below is also what `loraft schema` shows in an editor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]
TaskName = Literal["causal_lm", "seq2seq_lm", "seq_cls"]
DEFAULT_TASK: TaskName = "causal_lm"
ModelGroup = Literal["decoder", "encoder_decoder", "classifier"]
"""What a model is taken for: one that goes on with a text, one that answers it, or one that tells its class."""
TASK_OF_GROUP: Mapping[ModelGroup, TaskName] = {
    "decoder": "causal_lm", "encoder_decoder": "seq2seq_lm", "classifier": "seq_cls",
}  # fmt: skip
"""The task that models of a group are trained for where nothing else is said."""
Method = Literal["lora", "qlora", "full"]
SpecialTokensInText = Literal["error", "text", "keep"]
DtypeName = Literal["float32", "bfloat16", "float16"]
RowFormat = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "text", "translation", "classification"]
Names = Annotated[tuple[str, ...], Field(strict=False)]

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
LayerIndex = Annotated[int, Field(ge=0)]

LAYER_WORDS = r"all|(first|last|middle):[1-9][0-9]*|[0-9]+-[0-9]+"


@dataclass(frozen=True)
class Allowed:
    """What a field takes, in words, where its type does not say it well; error messages read it."""

    words: str


class Section(BaseModel):
    """What every section has in common: frozen, strict, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class ModelSection(Section):
    """The base model."""

    name_or_path: Annotated[str, Field(min_length=1)]
    """A Hub id, a local folder in transformers' format, a .gguf file, or builtin:NAME, such as
    builtin:smollm2-135m-instruct, which needs no model hub."""
    revision: str | None = None
    """A branch, tag or commit of a Hub model; null is its main branch."""
    dtype: Auto | DtypeName = "auto"
    """The dtype of frozen weights and of computing; what is trained is float32 whatever this says. auto is bfloat16
    where the device multiplies it natively, else float16 on a GPU and float32 on a CPU. float16 is refused on a CPU,
    and for families that overflow in it, such as T5 and Gemma 2."""
    attn_implementation: Literal["auto", "sdpa", "eager"] = "auto"
    """How attention is computed: sdpa by torch's scaled-dot-product kernels, eager by plain products. auto is sdpa
    where the family has it, and the only one with which rows lie end to end (data.packing): the others pad them."""
    tokenizer: str | None = None
    """Another tokenizer: a Hub id, a folder, a .gguf file or builtin:NAME; null is the model's own."""


class QuantizationSection(Section):
    """How `method: qlora` stores the frozen weights."""

    type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit data type: nf4 fits weights that are normally distributed, fp4 is a float of 4 bits."""
    double_quant: bool = True
    """Quantize the constants of the blocks too: 0.127 bits a weight in place of 0.5."""
    compute_dtype: Auto | DtypeName = "auto"
    """The dtype that blocks are dequantized to for each product; auto is the model's dtype."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


TargetGroup = Literal["all-linear", "attention", "mlp"]
LayerWords = Annotated[str, Field(pattern=f"^({LAYER_WORDS})$")]
LayerChoice = Annotated[
    LayerWords | Annotated[tuple[LayerIndex, ...], Field(min_length=1)],
    BeforeValidator(_as_tuple, json_schema_input_type=LayerWords | Annotated[list[LayerIndex], Field(min_length=1)]),
]
OF_A_STACK = Allowed("all, first:N, last:N, middle:N, a range like 4-11, a list like [0, 5, 31], or null")


class StackLayers(Section):
    """The layers of an encoder-decoder, each stack by itself; a stack that is not named has no adapter."""

    encoder: Annotated[LayerChoice | None, OF_A_STACK] = None
    """The encoder's layers; null leaves it without an adapter."""
    decoder: Annotated[LayerChoice | None, OF_A_STACK] = None
    """The decoder's layers; null leaves it without an adapter."""


class LoraSection(Section):
    """The adapter of `method: lora` and `method: qlora`."""

    r: PositiveInt = 16
    """The rank of each update: its size grows with r, and so does what it can learn."""
    alpha: PositiveFloat = 32
    """The update is scaled by alpha / r (alpha / √r with use_rslora)."""
    dropout: Share = 0.0
    """The share of the adapter's inputs that is set to zero while training, drawn anew each time."""
    target_modules: Annotated[
        TargetGroup | Annotated[tuple[str, ...], Field(min_length=1)],
        BeforeValidator(_as_tuple, json_schema_input_type=TargetGroup | Annotated[list[str], Field(min_length=1)]),
        Allowed("all-linear, attention, mlp, or a list of module names like [q_proj, v_proj]"),
    ] = "all-linear"
    """Which linear modules inside the layers are adapted: all-linear is every one, attention and mlp (feed-forward) are
    those of that part; a list names them, in full or by the last parts of their paths. A name that matches nothing is
    an error."""
    layers: Annotated[
        LayerWords | Annotated[tuple[LayerIndex, ...], Field(min_length=1)] | StackLayers,
        BeforeValidator(
            _as_tuple,
            json_schema_input_type=LayerWords | Annotated[list[LayerIndex], Field(min_length=1)] | StackLayers,
        ),
        Allowed(
            "all, first:N, last:N, middle:N, a range like 4-11, a list like [0, 5, 31], "
            "or a mapping of encoder and decoder to one of these"
        ),
    ] = "all"
    """Which transformer layers, numbered from 0: all, first:N, last:N, middle:N, a range like 4-11 (both ends in), or a
    list. Of an encoder-decoder that is said of each stack; a mapping of encoder and decoder says it of each by
    itself."""
    modules_to_save: Names = ()
    """Modules trained whole and saved beside the adapter, such as lm_head, named in full or by the last parts of their
    paths. None of them may be stored in 4 bits or tied to another. A classifier's head is one without being named."""
    use_rslora: bool = False
    """Scale by alpha / √r in place of alpha / r: steadier at high ranks."""
    use_dora: bool = False
    """Learn a magnitude for each output besides (DoRA): slower, sometimes better at low ranks."""
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    """Another rank for some modules, such as {down_proj: 32}: regular expressions for the last parts of their paths, of
    which the first that matches counts."""
    alpha_pattern: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Another alpha for some modules, likewise."""
    init: Literal["default", "gaussian"] = "default"
    """How A starts (B starts at zero, so that training begins at the base): default is Kaiming uniform, in ±1/√inputs,
    gaussian is normal with a deviation of 1/r."""
    start_from: str | None = None
    """The adapter whose weights training goes on from, by its folder, run, checkpoint or Hub id; this section must
    describe that adapter. null begins anew."""


class DataSource(Section):
    """One source of rows."""

    path: Annotated[str, Field(min_length=1)]
    """A file (.jsonl, .json, .csv, .parquet), a Hub dataset, or builtin:NAME."""
    split: str | None = None
    """The split of a Hub dataset or of a builtin; null is that of the data section, and train where that is null."""
    name: str | None = None
    """The configuration of a Hub dataset; null is that of the data section."""
    weight: PositiveFloat = 1.0
    """How often an epoch sees each row: 2 is twice, 0.5 is half of the rows, drawn anew in each epoch by the seed. Not
    used in eval."""
    format: Auto | RowFormat = "auto"
    """The format of the rows; auto is that of the data section."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column names: theirs, where the file has others, such as {prompt: question, completion: answer}; empty is
    those of the data section."""


NO_NULL = ("none", "nul", "nil", "no", "off", "false")
"""Words that mean null to a person and are text in YAML 1.2; a file of that name is ./none."""


def _sources(value: Any) -> Any:
    """One path, one mapping or a list of both, as a list of mappings."""
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


def _sources_or_share(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in NO_NULL:
        raise PydanticCustomError("no_null", "a word for null is meant")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if value is None or is_number else _sources(value)


Path = Annotated[str, Field(min_length=1)]
Source = Annotated[DataSource, Allowed("a path, or a mapping of path, split, name, weight, format and columns")]
Sources = Annotated[tuple[Source, ...], Field(min_length=1)]
SourcesAsWritten = Path | DataSource | Annotated[list[Path | DataSource], Field(min_length=1)]
HeldOut = Annotated[float, Field(gt=0, lt=1)]


class DataSection(Section):
    """The rows, and how they become tokens."""

    train: Annotated[
        Sources,
        BeforeValidator(_sources, json_schema_input_type=SourcesAsWritten),
        Allowed(
            "a path, a Hub id, builtin:NAME, a mapping of path, split, name, weight, format and columns, or a list"
        ),
    ]
    """The rows to learn from: a path, a Hub id, builtin:NAME, a mapping with the keys of a source, or a list of
    these."""
    eval: Annotated[
        HeldOut | Sources | None,
        BeforeValidator(_sources_or_share, json_schema_input_type=HeldOut | SourcesAsWritten | None),
        Allowed("like data.train, a fraction above 0 and below 1, or null"),
    ] = 0.05
    """Rows that are not trained on: like train, or the fraction held out of train, drawn by the seed; null evaluates
    nothing."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column names: theirs (or translation.en, inside a column of objects), for every source, of train and eval,
    that does not say its own."""
    split: str | None = None
    """The split of a Hub dataset or of a builtin, for every source that does not say its own; null is train."""
    name: str | None = None
    """The configuration of a Hub dataset, for every source that does not say its own; null is the dataset's default."""
    format: Auto | RowFormat = "auto"
    """The format of the rows, for every source that does not say its own; auto recognises it by the columns."""
    chat_template: Annotated[
        str,
        Field(pattern=r"^(auto|chatml|alpaca|.+\.jinja2?)$"),
        Allowed("auto, chatml, alpaca, or the path of a .jinja file"),
    ] = "auto"
    """How conversations are printed: auto (as the tokenizer's template has it; chatml where it has none), chatml,
    alpaca, or a .jinja file. It is saved with what is trained."""
    source_prefix: str = ""
    """Text before every source, such as "translate English to French: "; T5 was trained with such words."""
    source_lang: str | None = None
    """The language of the sources: their key in `translation` rows, and the code that a multilingual tokenizer has for
    it, such as en_XX or eng_Latn (which find the keys en and eng too). null where there are neither."""
    target_lang: str | None = None
    """The language of the targets, likewise; models such as NLLB and mBART begin every answer with it."""
    labels: Names = ()
    """The names of the classes in their order, which is their numbers; empty takes those that the training rows have,
    sorted."""
    max_length: Annotated[int, Field(ge=2)] = 2048
    """The longest row, in tokens; of seq2seq_lm the longest source. Where it is not set it is no more than the
    positions of the model."""
    max_target_length: Annotated[int, Field(ge=2)] | None = None
    """The longest target, in tokens; null is max_length."""
    on_overlength: Literal["auto", "drop", "truncate", "split", "error"] = "auto"
    """What happens to a longer row: drop leaves it out, truncate keeps its beginning, split makes pieces of it
    (causal_lm alone), error refuses the run. auto splits plain text and drops the rest. Always counted."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a row that cannot be read: error refuses the run, skip leaves it out and counts it."""
    train_on: Literal["completions", "last", "all"] = "completions"
    """Which tokens are trained: completions is every assistant turn and the completion of a prompt, last is the last
    turn alone, all is every token. Plain text is trained whole, and a turn's own `train: true` or `train: false` goes
    before this."""
    split_turns: bool = False
    """Make each trained answer of a conversation a row of its own, behind the prompt that generation feeds: for chat
    templates that leave out earlier thoughts, or print a conversation otherwise once it is answered."""
    special_tokens_in_text: SpecialTokensInText = "text"
    """What happens to control tokens, such as <|im_end|>, that are written in the text of a row or a prompt: text reads
    them as plain text, keep as the tokens that they name, error refuses the row. Always counted."""
    streaming: bool = False
    """Read the training rows as they are needed, never all at once: for more rows than memory holds. Then eval is a
    source or null, labels are named, no source is a .json file or has a weight, and packing fill, group_by_length and
    balanced class_weights cannot be had."""
    shuffle_buffer: PositiveInt = 10_000
    """Rows that a stream (data.streaming) holds to draw from: an order is as random as this is large."""
    num_proc: Auto | PositiveInt = "auto"
    """Processes that turn rows into tokens; auto is one below 20,000 rows of a source and one a core from there."""
    packing: Literal["auto", "off", "fill"] = "auto"
    """How the rows of a batch lie: auto end to end, without padding and without seeing one another (padded where the
    family cannot); off pads them; fill fills rows up to max_length with others (fewer steps)."""


STEPS_OR_SHARE = Allowed("a whole number of steps, or a share of all steps below 1")
STEPS_OR_SHARE_OR_NULL = Allowed("a whole number of steps, a share of all steps above 0 and below 1, or null")


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
    """The peak rate, after the warm-up; auto is 2e-4 for lora and qlora, 2e-5 for full."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    """How the rate falls after the warm-up: along a line or half a cosine towards 0 at the end, or not at all."""
    warmup_steps: Annotated[NonNegativeFloat, STEPS_OR_SHARE] = 0.03
    """Steps in which the rate rises to its peak, linearly; below 1 it is a share of all steps, rounded up."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay; vectors, such as norms and biases, do not decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """The norm that the gradient of a step is clipped to; null does not clip."""
    adam_beta1: Share = 0.9
    """AdamW's first beta."""
    adam_beta2: Share = 0.999
    """AdamW's second beta."""
    group_by_length: bool = False
    """Put rows of like length into one batch (fewer padded positions, a less random order). Not used by packing
    fill."""
    optim: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = "auto"
    """AdamW with its state in 32 bits or, in a quarter of the memory, in 8; paged_ moves that state to main memory
    while the GPU is short of its own, and is unpaged on a CPU. auto is paged_adamw_32bit for qlora on CUDA and adamw
    otherwise."""
    gradient_checkpointing: Auto | bool = "auto"
    """Recompute activations in the backward pass: less memory, more time. auto does so only where the run would
    otherwise be predicted to need more than 90 % of the memory that is free."""
    logging_steps: PositiveInt = 10
    """Optimizer steps between two lines of metrics."""
    eval_steps: Annotated[PositiveFloat | None, STEPS_OR_SHARE_OR_NULL] = None
    """Optimizer steps between evaluations; below 1 a share of all steps; null is once an epoch. The last step is
    evaluated in any case."""
    save_steps: Annotated[PositiveFloat | None, STEPS_OR_SHARE_OR_NULL] = None
    """Optimizer steps between checkpoints; below 1 a share of all steps; null is once an epoch. The best evaluation,
    the last step and a stop are saved in any case."""
    save_total_limit: PositiveInt | None = 3
    """How many checkpoints are kept, the newest ones; the best one is kept besides. null keeps all."""
    metric_for_best_model: Literal["loss", "accuracy", "macro_f1"] = "loss"
    """The evaluation metric by which the best checkpoint is chosen: loss, or for seq_cls accuracy or macro_f1."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, PositiveFloat] | None,
        Allowed("balanced, a mapping of every label to its weight, or null"),
    ] = None
    """What a row of each class counts in the loss: balanced is rows / (classes · rows of the class), so that classes
    count alike; null lets rows count alike."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better one. With it the best weights are the result; null
    trains to the end, and the last ones are."""
    sample_prompts: Names = ()
    """Prompts answered greedily at every evaluation, shown and stored in samples.jsonl."""
    report_to: Names = ()
    """Trackers to report to, besides metrics.jsonl: tensorboard, wandb, mlflow, trackio and others that accelerate
    knows. Their packages have to be installed."""
    project: str | None = None
    """The project's name in a tracker; null is loraft."""
    run_name: str | None = None
    """The run's name in wandb, mlflow, trackio and swanlab; null is the name of the run's folder."""

    @field_validator("warmup_steps", "eval_steps", "save_steps")
    @classmethod
    def _share_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError(f"must be {STEPS_OR_SHARE.words}")
        return value


class GenerationSection(Section):
    """The defaults of answers, saved with what was trained."""

    max_new_tokens: PositiveInt = 256
    """The most tokens that an answer may have, those to sample_prompts included."""
    temperature: NonNegativeFloat | None = None
    """0 is greedy, above 0 draws, the more freely the higher it is; null is the base's own."""


def _contradiction(message: str, *keys: str) -> PydanticCustomError:
    """What a validator raises where values that are each allowed do not go together; the first key is named."""
    return PydanticCustomError("contradiction", "{message}", {"message": message, "keys": keys})


def _beyond_a_stream(config: RunConfig) -> Iterator[tuple[str, bool, str]]:
    """What cannot be had without all rows at hand: the key, whether it is asked for, and why it cannot be had."""
    data, training = config.data, config.training
    share = isinstance(data.eval, float)
    yield "data.eval", share, "a share of the rows cannot be held out (name a file, or write null)"
    yield "data.train", any(source.weight != 1 for source in data.train), "weights need all rows of a source"
    yield "data.packing", data.packing == "fill", "fill chooses among all rows"
    yield "training.group_by_length", training.group_by_length, "rows are sorted among many"
    balanced, unnamed = training.class_weights == "balanced", config.task == "seq_cls" and not data.labels
    yield "training.class_weights", balanced, "balanced counts the rows of each class (write the weights)"
    yield "data.labels", unnamed, "the classes are those of all rows (name them)"


class RunConfig(Section):
    """One run of loraft, whole."""

    task: TaskName = DEFAULT_TASK
    """What is learned: causal_lm (decoders go on with a text), seq2seq_lm (encoder-decoders answer a source), or
    seq_cls (a text gets a label)."""
    method: Method = "lora"
    """lora (small updates beside frozen weights), qlora (the same beside weights in 4 bits) or full (every weight)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The seed of every random choice: rows held out, their order, the start of an adapter or a head, dropout."""
    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    generation: GenerationSection = GenerationSection()

    @model_validator(mode="after")
    def _only_texts_are_split(self) -> RunConfig:
        if self.data.on_overlength == "split" and self.task != "causal_lm":
            raise _contradiction(
                f"rows of task {self.task} cannot be split: drop or truncate them", "data.on_overlength", "task"
            )
        return self

    @model_validator(mode="after")
    def _split_turns_train_answers(self) -> RunConfig:
        if self.data.split_turns and self.data.train_on == "all":
            raise _contradiction(
                "makes a row of each answer, and data.train_on: all trains every token",
                "data.split_turns", "data.train_on",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> RunConfig:
        metric = self.training.metric_for_best_model
        if metric != "loss" and self.task != "seq_cls":
            raise _contradiction(
                f"{metric} is measured of classifiers, and the task is {self.task}",
                "training.metric_for_best_model", "task",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _a_stream_is_not_known_beforehand(self) -> RunConfig:
        if self.data.streaming:
            for key, is_set, message in _beyond_a_stream(self):
                if is_set:
                    raise _contradiction(
                        f"{message}, and data.streaming reads rows as they come", key, "data.streaming"
                    )
        return self

    @model_validator(mode="after")
    def _best_needs_evaluation(self) -> RunConfig:
        if self.training.early_stopping_patience is not None and self.data.eval is None:
            raise _contradiction(
                "needs an evaluation, and data.eval is null", "training.early_stopping_patience", "data.eval"
            )
        return self

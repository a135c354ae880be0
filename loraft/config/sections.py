"""The sections of a config that say what is learned from what (base, adapter, rows), and what all sections share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from loraft.config.choices import (
    TASKS_OF_GROUP,
    Auto,
    DtypeName,
    Method,
    QuantizationType,
    RowFormat,
    SpecialTokensInText,
    TaskName,
    TextBy,
)

Names = Annotated[tuple[str, ...], Field(strict=False)]

NonEmpty = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Allowed:
    """What a field takes, in words, where its type does not say it well; error messages read it."""

    words: str


class UsedBy:
    """The tasks or the methods that use a key or a section, where not all do."""

    def __init__(self, *names: TaskName | Method) -> None:
        self.names = frozenset(names)


OF_CAUSAL_LM, OF_SEQ_CLS = UsedBy("causal_lm"), UsedBy("seq_cls")
OF_DECODERS, OF_SEQ2SEQ = UsedBy(*TASKS_OF_GROUP["decoder"]), UsedBy(*TASKS_OF_GROUP["encoder_decoder"])


class Section(BaseModel):
    """What every section has in common: frozen, strict, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def said(self, *keys: str) -> list[str]:
        """Those of these keys whose value is not the default."""
        return [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]


class ModelSection(Section):
    """The base model."""

    name_or_path: NonEmpty
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
    add_tokens: Names = ()
    """New tokens, such as <call>: each is one token wherever it stands in a row, a prompt or an answer, and of the
    embeddings (and of a head that is not tied to them) its row alone is trained, beginning as the mean of the others.
    They are saved with what is trained."""
    stream_layers: bool = False
    """Keep the frozen matrices of the layers in the host's memory while training, and feed them to the GPU one layer
    after the other: the same run in the memory of two layers beside what is trained, and slower. Embeddings and an
    untied head are fed likewise where both are frozen. On a CPU all lie in that memory as it is."""


class QuantizationSection(Section):
    """How `method: qlora` stores the frozen weights."""

    type: QuantizationType = "nf4"
    """How a weight is stored: nf4 in 4 bits that fit normally distributed weights, fp4 in a float of 4 bits, int8 in
    whole numbers of 8 bits, with one constant for all inputs of an output. A model whose files are quantized by
    bitsandbytes already is trained as it is, and this must be their type."""
    double_quant: bool = True
    """Quantize the constants of the blocks too: 0.127 bits a weight in place of 0.5. int8 has no blocks."""
    experts: bool = True
    """Whether the experts of a mixture, which are one tensor and no linear modules, are in 4 bits too; false leaves
    them in the model's dtype, and int8 does so in any case."""
    compute_dtype: Auto | DtypeName = "auto"
    """The dtype that weights are dequantized to for each product; auto is the model's dtype."""

    @property
    def bits(self) -> int:
        """The bits of a stored weight, its constants apart."""
        return 8 if self.type == "int8" else 4

    @property
    def words(self) -> str:
        """What is said of it."""
        return f"{self.type}{' with double quantization' if self.double_quant and self.bits == 4 else ''}"


LayerWords = Annotated[str, Field(pattern=r"^(all|(first|last|middle):[1-9][0-9]*|[0-9]+-[0-9]+)$")]
Layers = LayerWords | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]
OF_A_STACK = Allowed("all, first:N, last:N, middle:N, a range like 4-11, a list like [0, 5, 31], or null")


class StackLayers(Section):
    """The layers of an encoder-decoder, each stack by itself; a stack that is not named has no adapter."""

    encoder: Annotated[Layers | None, OF_A_STACK] = None
    """The encoder's layers; null leaves it without an adapter."""
    decoder: Annotated[Layers | None, OF_A_STACK] = None
    """The decoder's layers; null leaves it without an adapter."""


FROM_WEIGHTS = ("pissa", "olora")
"""Starts of an adapter that are saved as an update of twice the rank."""
FROM_SINGULAR = (*FROM_WEIGHTS, "loftq", "eva")
"""Starts that are made of directions of a weight or of what it reads."""


class LoraSection(Section):
    """The adapter of `method: lora` and `method: qlora`."""

    r: PositiveInt = 16
    """The rank of each update: its size grows with r, and so does what it can learn."""
    alpha: PositiveFloat = 32
    """The update is scaled by alpha / r (alpha / √r with use_rslora)."""
    dropout: Share = 0.0
    """The share of the adapter's inputs that is set to zero while training, drawn anew each time."""
    target_modules: Annotated[
        Literal["all-linear", "attention", "mlp"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)],
        Allowed("all-linear, attention, mlp, or a list of module names like [q_proj, v_proj]"),
    ] = "all-linear"
    """Which linear modules inside the layers are adapted: all-linear is every one, attention and mlp (feed-forward) are
    those of that part; a list names them, in full or by the last parts of their paths. A name that matches nothing is
    an error."""
    layers: Annotated[
        Layers | StackLayers,
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
    plus_ratio: PositiveFloat = 1.0
    """LoRA+: B learns at this times training.learning_rate, and all else at that; 1 is plain LoRA, its authors take 16
    (Hayou et al. 2024)."""
    init: Literal["default", "gaussian", "pissa", "olora", "loftq", "eva"] = "default"
    """How an adapter starts: default draws A in ±1/√inputs (Kaiming), gaussian with a deviation of 1/r, and B is zero.
    pissa starts A and B with the largest singular directions of the weight, olora with its QR decomposition: what is
    saved is a plain adapter of twice the rank for the base as it is. loftq, of method: qlora, starts them with what 4
    bits leave out of the weight, and eva starts A with the directions of what a module reads in the rows."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base are trained besides: none, those of the adapted modules (lora_only), or all."""
    target_parameters: Names = ()
    """Parameters that are adapted by themselves, such as mlp.experts.gate_up_proj, which holds all experts: named in
    full or by the last parts of their paths, within lora.layers. With them there is neither dropout nor DoRA."""
    experts: bool = True
    """Whether all-linear and mlp adapt the experts of a mixture too, which are one tensor (as target_parameters does):
    each expert gets an update of rank r. Routers are adapted only where they are named."""
    start_from: str | None = None
    """The adapter whose weights training goes on from, by its folder, run, checkpoint or Hub id; this section must
    describe that adapter. null begins anew."""


class DataSource(Section):
    """One source of rows."""

    path: NonEmpty
    """A file (.jsonl, .json, .csv, .tsv, .parquet, .xlsx, .txt, .md, each also with .gz, .bz2 or .zst behind it), a
    folder of such files, a pattern like data/*.parquet, an address (https://…, s3://…, gs://…, hf://…), - for standard
    input, a Hub dataset, or builtin:NAME."""
    split: str | None = None
    """The split of a Hub dataset or of a builtin; null is that of the data section, and train where that is null."""
    name: str | None = None
    """The configuration of a Hub dataset, or the sheet of a workbook; null is that of the data section."""
    limit: PositiveInt | None = None
    """At most so many rows, the first as they lie, bad ones among them; null is that of the data section."""
    weight: PositiveFloat = 1.0
    """How often an epoch sees each row: 2 is twice, 0.5 is half of the rows, drawn anew in each epoch by the seed. Not
    used in eval."""
    format: Auto | RowFormat = "auto"
    """The format of the rows; auto is that of the data section."""
    text_by: Auto | TextBy = "auto"
    """What of a plain text is a row; auto is that of the data section."""
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


A_MAPPING = "a mapping of path, split, name, limit, weight, format, text_by and columns"
Source = Annotated[DataSource, Allowed(f"a path, or {A_MAPPING}")]
Sources = Annotated[tuple[Source, ...], Field(min_length=1)]
SourcesAsWritten = NonEmpty | DataSource | Annotated[list[NonEmpty | DataSource], Field(min_length=1)]
HeldOut = Annotated[float, Field(gt=0, lt=1)]
ChatTemplate = Annotated[
    str,
    Field(pattern=r"^(auto|chatml|alpaca|.+\.jinja2?)$"),
    Allowed("auto, chatml, alpaca, or the path of a .jinja file"),
]


class DataSection(Section):
    """The rows, and how they become tokens."""

    train: Annotated[
        Sources,
        BeforeValidator(_sources, json_schema_input_type=SourcesAsWritten),
        Allowed(f"a path, a Hub id, builtin:NAME, {A_MAPPING}, or a list"),
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
    """The configuration of a Hub dataset, or the sheet of a workbook, for every source that does not say its own; null
    is the dataset's default, or the only sheet with rows."""
    limit: PositiveInt | None = None
    """At most so many rows of each source, of train and eval, that does not say its own: the first as they lie, bad
    ones among them; null takes all."""
    format: Auto | RowFormat = "auto"
    """The format of the rows, for every source that does not say its own; auto recognises it by the columns."""
    text_by: Auto | TextBy = "auto"
    """What of a plain text (.txt, .md) is a row, for every source that does not say its own: the file, a paragraph
    (text between blank lines) or a line. auto is the file in a folder or a pattern; of a file that is named by itself
    it is the paragraph, or the line where no blank line parts it."""
    chat_template: Annotated[ChatTemplate, OF_DECODERS] = "auto"
    """How conversations are printed: auto (as the tokenizer's template has it; chatml where it has none), chatml,
    alpaca, or a .jinja file. It is saved with what is trained."""
    source_prefix: Annotated[str, OF_SEQ2SEQ] = ""
    """Text before every source, such as "translate English to French: "; T5 was trained with such words."""
    source_lang: Annotated[str | None, OF_SEQ2SEQ] = None
    """The language of the sources: their key in `translation` rows, and the code that a multilingual tokenizer has for
    it, such as en_XX or eng_Latn (which find the keys en and eng too). null where there are neither."""
    target_lang: Annotated[str | None, OF_SEQ2SEQ] = None
    """The language of the targets, likewise; models such as NLLB and mBART begin every answer with it."""
    labels: Annotated[Names, OF_SEQ_CLS] = ()
    """The names of the classes in their order, which is their numbers; empty takes those that the training rows have,
    sorted, or as a dataset of the Hub numbers them."""
    max_length: Annotated[int, Field(ge=2)] = 2048
    """The longest row, in tokens; of an encoder-decoder the longest source, of preference the longer text. Where it is
    not set it is no more than the positions of the model."""
    max_target_length: Annotated[Annotated[int, Field(ge=2)] | None, OF_SEQ2SEQ] = None
    """The longest target, in tokens; null is max_length."""
    on_overlength: Literal["auto", "drop", "truncate", "split", "error"] = "auto"
    """What happens to a longer row: drop leaves it out, truncate keeps its beginning, split makes pieces of it
    (causal_lm alone), error refuses the run. auto splits plain text and drops the rest. Always counted."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a row that cannot be read: error refuses the run, skip leaves it out and counts it."""
    train_on: Annotated[Literal["completions", "last", "all"], OF_CAUSAL_LM] = "completions"
    """Which tokens are trained: completions is every assistant turn and the completion of a prompt, last is the last
    turn alone, all is every token. Plain text is trained whole, and a turn's own `train: true` or `train: false` goes
    before this, as does OpenAI's `weight: 0`."""
    split_turns: Annotated[bool, OF_CAUSAL_LM] = False
    """Make each trained answer of a conversation a row of its own, behind the prompt that generation feeds: for chat
    templates that leave out earlier thoughts, or print a conversation otherwise once it is answered."""
    special_tokens_in_text: SpecialTokensInText = "text"
    """What happens to control tokens, such as <|im_end|>, that are written in the text of a row or a prompt: text reads
    them as plain text, keep as the tokens that they name, error refuses the row. Always counted."""
    shuffle: Literal["batches"] | bool = True
    """Draw the order of the training rows anew in each epoch, by the seed; batches draws once which rows share a batch,
    and the order of the batches anew; false keeps that of the files, in every epoch, for streams too, and goes neither
    with group_by_length nor with packing fill, which order rows by their length."""
    streaming: bool = False
    """Read the training rows as they are needed, never all at once: for more rows than memory holds. Then eval is a
    source or null, labels are named, no source is a .json file or has a weight, and packing fill, group_by_length and
    balanced class_weights cannot be had."""
    shuffle_buffer: PositiveInt = 10_000
    """Rows that a stream (data.streaming) holds to draw from: an order is as random as this is large. Not used where
    data.shuffle is false."""
    num_proc: Auto | PositiveInt = "auto"
    """Processes that turn rows into tokens; auto is one below 20,000 rows of a source and one a core from there."""
    packing: Annotated[Literal["auto", "off", "fill"], OF_DECODERS] = "auto"
    """How the rows of a batch lie: auto end to end, without padding and without seeing one another (padded where the
    family cannot); off pads them; fill fills rows with others up to max_length, of preferences up to twice that (fewer
    steps)."""
    shared_prefix: Annotated[Literal["auto", "off"], OF_DECODERS] = "auto"
    """What all rows of a batch begin with, a system prompt say: auto computes it once for all of them on a CPU, where
    rows of a well-known family lie end to end and nothing is drawn anew for each (no dropout, noise or routers' loss),
    with the same losses but for rounding; off computes it in each row, as auto does elsewhere."""

    @property
    def eval_sources(self) -> tuple[DataSource, ...]:
        """The sources to evaluate on; none where a share of the rows is held out, or nothing evaluated."""
        return self.eval if isinstance(self.eval, tuple) else ()

    @property
    def target_limit(self) -> tuple[str, int]:
        """The key that says how many tokens a target may have, and how many."""
        own = self.max_target_length
        return ("data.max_length", self.max_length) if own is None else ("data.max_target_length", own)

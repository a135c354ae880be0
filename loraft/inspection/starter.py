"""The config to start with: few keys, each with the reason why it stands there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraft.config.choices import Method, RowFormat, TaskName, TextBy
from loraft.config.config_file import Said, commented, config_of
from loraft.config.schema import RunConfig
from loraft.rows.fields import COLUMNS
from loraft.tasks import TASKS
from loraft.tasks.task import StarterFacts

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SURELY = 512
"""Nearly every model reads so many tokens; of one that is elsewhere a longer bound is left to its positions."""
UNEVEN = 3
"""Classes are weighted where the largest has this many times the rows of the smallest."""
TEXT = '"…"'
VALUES: Mapping[str, str] = {
    "messages": '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
    "conversations": '[{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]',
    "tools": "[…]",
}
"""What stands in columns that hold something else than text."""
USUAL: Mapping[RowFormat, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output"),
    "preferences": ("prompt", "chosen", "rejected"),
    "translation": ("source", "target"),
}
"""The columns that rows of a format have for the most part, where they are not those that come first in `COLUMNS`."""
METHODS: Mapping[Method, str] = {
    "lora": "Small updates beside frozen weights. qlora stores those in 4 bits, full trains every weight.",
    "qlora": "Small updates beside frozen weights in 4 bits: a quarter of the memory, a little slower than lora.",
    "full": "Every weight is trained: the most memory, and checkpoints as large as the model. lora needs a fraction.",
}


@dataclass(frozen=True, kw_only=True)
class Start(StarterFacts):
    """What a first config is made from.

    Attributes:
        name: The configuration or sheet of the rows that is meant; None where none was named.
        split: Their split, likewise.
        columns: Our column names: theirs, where they differ.
        read: Our names of the columns that are read; none where nobody looked.
        rows: How many rows there are; None where nobody looked.
        longest_tokens: How many tokens the longest row has, at most; None where nobody looked.
        positions: The most tokens that the model can read; None where nothing is known of it.
        counted: The longest row was counted with the model's tokenizer and template; otherwise its bytes bound it.
        bad: How many rows cannot be used.
        text_by: What of a plain text is a row; None where it is no plain text.
    """

    task: TaskName
    method: Method
    model: str
    train: str
    name: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    read: Sequence[str] = ()
    rows: int | None = None
    longest_tokens: int | None = None
    positions: int | None = None
    counted: bool = False
    bad: int = 0
    text_by: TextBy | None = None


def starter(start: Start, path: Path) -> str:
    """The text of a config that `load_config` accepts, with a comment above each key; its heading names its `path`."""
    starter_config(start)  # what is not a config is never written
    name = shlex.quote(str(path))
    lines = [
        f"# {TASKS[start.task].summary}",
        "#",
        f"#   loraft preview {name}   the rows as the model will see them",
        f"#   loraft check {name}     what can be known before the first step",
        f"#   loraft train {name}     trains; --resume goes on after a stop",
        "#",
        "# What does not stand here has its default; `loraft schema` lists every key.",
    ]
    return "\n".join([*lines, *commented(_said(start))]) + "\n"


def starter_config(start: Start) -> RunConfig:
    """The config that `starter` writes down.

    Raises:
        ConfigError: What is asked for is no config, or holds a secret.
    """
    return config_of(_said(start), "the new config")


def _said(start: Start) -> Iterator[Said]:
    others = " or ".join(task for task in TASKS if task != start.task)
    yield "task", start.task, f"What is learned; {others} is for other rows and other models."
    yield "method", start.method, METHODS[start.method]
    yield "seed", 0, "The same seed gives the same run."
    yield "model.name_or_path", start.model, "A Hub id, a folder, a .gguf file, or builtin:NAME."
    if start.method == "qlora":
        yield "quantization.type", "nf4", "nf4 fits weights that are normally distributed; fp4 is the other type."
    if start.method != "full":
        yield "lora.r", 16, "The rank of each update: what it can learn grows with it, and so does its size."
        yield "lora.alpha", 32, "The update is scaled by alpha / r; keep it at twice r."
        yield "lora.target_modules", "all-linear", "Every linear layer; attention or mlp train less, and faster."
    yield from _data(start)
    yield from _training(start)
    if TASKS[start.task].generates:
        yield "generation.max_new_tokens", 256, "The most tokens of an answer, saved with what was trained."


def _data(start: Start) -> Iterator[Said]:
    found = "Rows look like" if start.rows is None else f"{start.rows:,} rows. They are read as"
    yield from TASKS[start.task].starter_loss(start.method, start.format)
    yield "data.train", start.train, f"{found} {example_row(start.format, start.read, start.languages)}"
    if start.name:
        yield "data.name", start.name, "The configuration of the dataset, or the sheet of the workbook."
    if start.split:
        yield "data.split", start.split, "The split of the dataset."
    yield "data.format", start.format, "What the columns are; auto would recognise it again at every start."
    if start.text_by:
        yield "data.text_by", start.text_by, "What of a plain text is a row: file, paragraph or line."
    if start.columns:
        yield "data.columns", dict(start.columns), "Our column names: those of the file."
    yield _evaluation(start)
    yield from TASKS[start.task].starter_keys(start)
    if start.bad:
        rows = "1 row" if start.bad == 1 else f"{start.bad:,} rows"
        yield "data.on_bad_row", "skip", f"{rows} cannot be used, and are left out and counted; error says why of each."
    if start.counted or start.longest_tokens is None or start.longest_tokens <= SURELY:
        yield _max_length(start)


def example_row(row_format: RowFormat, names: Sequence[str] = (), languages: Sequence[str] = ()) -> str:
    """A row with the columns of these names, or with those that such rows have; of a translation in its languages."""
    texts = ", ".join(f'"{name}": {TEXT}' for name in languages[:2])
    values = {**VALUES, "translation": f"{{{texts}}}", "label": "true" if row_format == "unpaired" else TEXT}
    shown = ("translation",) if texts else names or USUAL.get(row_format, COLUMNS[row_format][0])
    return "{" + ", ".join(f'"{name}": {values.get(name, TEXT)}' for name in shown) + "}"


def _evaluation(start: Start) -> Said:
    if start.train == "builtin:tickets" and start.split != "eval":
        held_out = {"path": start.train, "split": "eval"}
        return "data.eval", held_out, "Rows that are never trained on: their loss tells what was learned."
    if start.rows is not None and start.rows < 10:
        return "data.eval", None, "Nothing is evaluated: there are too few rows to hold some of them out."
    share = 0.05 if start.rows is None or start.rows >= 200 else 0.1
    return "data.eval", share, "This share is held out of train, by the seed; or name a file of other rows."


def _max_length(start: Start) -> Said:
    needed = LENGTHS[3] if start.longest_tokens is None else start.longest_tokens
    fitting = next((length for length in LENGTHS if length >= needed), LENGTHS[-1])
    rest = "longer ones are split" if start.format == "text" else "longer ones are dropped"
    about = "" if start.counted else "no more than "
    found = "" if start.longest_tokens is None else f"The longest has {about}{start.longest_tokens:,}. "
    inputs = TASKS[start.task].inputs
    why = f"{found}The most tokens of {inputs}: {rest} and counted, and `loraft check` tells how many."
    return "data.max_length", min(fitting, start.positions or fitting), why


def _training(start: Start) -> Iterator[Said]:
    yield "training.num_train_epochs", 3, "How often each row is seen."
    yield "training.per_device_train_batch_size", 8, "Rows in a step. Where memory is short, halve it …"
    yield "training.gradient_accumulation_steps", 1, "… and double this: the same steps with less memory."
    rate = "2e-5, for every weight moves" if start.method == "full" else "2e-4; small models and narrow tasks take more"
    if (share := TASKS[start.task].rate_share) != 1:
        rate = f"{share:g} of what other tasks take"
    yield "training.learning_rate", "auto", f"auto is {rate}."
    if start.labels and max(start.labels.values()) >= UNEVEN * min(start.labels.values()):
        rare = min(start.labels, key=lambda name: start.labels[name])
        why = f"The rows are uneven ({rare} has {start.labels[rare]:,}): each class counts the same in the loss."
        yield "training.class_weights", "balanced", why
    if start.method == "full":
        yield "training.save_total_limit", 1, "Each checkpoint holds all weights and twice their size of moments."

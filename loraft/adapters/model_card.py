"""The model card: what was trained, on what, how, and what was measured.

A card is shown as a page, and its header is read by programs: a name, a label or a path with a line end, a backtick or
a tag must neither break the one nor become a part of the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraft.config.choices import Method, TaskName
from loraft.config.schema import RunConfig, TrainingSection
from loraft.config.sections import StackLayers
from loraft.figures import perplexity
from loraft.tasks import TASKS

UNSEEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
"""Line ends of every kind, and what else has no place in a line."""
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~$!])")
METHODS: dict[Method, str] = {
    "lora": "LoRA",
    "qlora": "QLoRA (LoRA on a base stored in 4 bits)",
    "full": "full fine-tuning",
}


@dataclass(frozen=True)
class TrainingFacts:
    """What happened in a run up to the moment of saving.

    Attributes:
        epochs: Passes over the rows, with fractions.
        rows: Rows in an epoch.
        trained_tokens: Tokens that the loss was computed on, over all steps.
        train_loss: The last logged mean loss a trained token.
        eval_loss: The mean loss a trained token of the held-out rows, of these very weights; None if not measured.
        eval_rows: How many rows that was measured on.
        figures: What else was measured on them: `accuracy` and `macro_f1` of a classifier.
    """

    steps: int
    epochs: float
    rows: int
    trained_tokens: int
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_rows: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


def shown(name: str) -> str:
    """A model's or a file's name as a card may show it: an absolute path would tell where it lay."""
    return Path(name).name if Path(name).is_absolute() or name.startswith("~") else name


ABSOLUTE = re.compile(r"""(?:(?<=[\s=,\[{("'`])|^)(?:~[\w.-]*)?/[^\s,\]})"'`]*[^\s,\]})"'`.:]""")
"""An absolute path inside a text, as far as it surely goes."""


def without_paths(text: str) -> str:
    """A text with the absolute paths in it as a card may show them."""
    return ABSOLUTE.sub(lambda found: shown(found.group()), text)


def shown_word(word: str) -> str:
    """A word of a command line without absolute paths: `DIR`, `key=DIR`, `NAME=DIR=WEIGHT`, `[DIR]`."""
    return "=".join(without_paths(shown(part)) for part in word.split("="))


def model_card(config: RunConfig, facts: TrainingFacts, version: str, labels: Sequence[str] = ()) -> str:
    """The text of README.md: `version` is loraft's, and `labels` are the classes of a classifier."""
    sections = (
        _front_matter(config),
        _title(config, version),
        _usage(config, labels),
        _training(config, facts),
        _result(facts, config.task),
    )
    return "\n".join("\n".join(section) + "\n" for section in sections)


def _front_matter(config: RunConfig) -> Iterator[str]:
    full = config.method == "full"
    yield "---"
    yield f"base_model: {quoted(shown(config.model.name_or_path))}"
    yield f"library_name: {'transformers' if full else 'peft'}"
    yield f"pipeline_tag: {TASKS[config.task].pipeline_tag}"
    yield "tags:"
    tags = {"full": ["loraft"], "lora": ["loraft", "lora", "peft"], "qlora": ["loraft", "lora", "peft", "qlora"]}
    yield from (f"- {tag}" for tag in tags[config.method])
    yield "---"


def _title(config: RunConfig, version: str) -> Iterator[str]:
    base = code(shown(config.model.name_or_path))
    revision = f" (revision {code(config.model.revision)})" if config.model.revision else ""
    if config.method == "full":
        yield f"# A fine-tuned {base}\n"
        yield f"Every weight of {base}{revision} was trained with loraft {version}; the weights here are float32."
    else:
        yield f"# An adapter for {base}\n"
        yield f"{METHODS[config.method]} on {base}{revision}, trained with loraft {version}. It needs that base."


def _usage(config: RunConfig, labels: Sequence[str]) -> Iterator[str]:
    base, made_by = shown(config.model.name_or_path), TASKS[config.task].auto_class
    yield "## Use\n\n```python"
    if config.method == "full":
        yield f"from transformers import {made_by}, AutoTokenizer\n"
        yield 'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
        yield f'model = {made_by}.from_pretrained("path/to/this/folder")'
        yield "```"
        yield from _classes(labels)
        return
    ours = base.startswith("builtin:") or base.endswith(".gguf")
    yield "from peft import PeftModel"
    yield f"from transformers import {made_by}, AutoTokenizer"
    if ours:
        yield "from loraft import resolve"
    yield ""
    yield 'tokenizer = AutoTokenizer.from_pretrained("path/to/adapter")'
    source = f"resolve({quoted(base)})" if ours else quoted(base)
    # A base may have a head already, for another number of classes: the adapter brings its own.
    count = f", num_labels={len(labels)}, ignore_mismatched_sizes=True" if labels else ""
    yield f"base_model = {made_by}.from_pretrained({source}{count})"
    if config.model.add_tokens:
        yield "if len(tokenizer) > len(base_model.get_input_embeddings().weight):"
        yield "    base_model.resize_token_embeddings(len(tokenizer))"
    if labels:
        yield "base_model.config.pad_token_id = tokenizer.pad_token_id"
    yield 'model = PeftModel.from_pretrained(base_model, "path/to/adapter")'
    yield "```\n"
    yield from _classes(labels)
    if not labels:
        yield "The chat template, the stop ids and the generation defaults that it was trained for lie beside it."
    if config.method == "qlora":
        stored = config.quantization
        kind = stored.words.replace(stored.type, stored.type.upper()).replace(" with", ",")
        yield f"It was trained on the base in {stored.bits} bits ({kind}); on the unquantized base its answers differ."


def _classes(labels: Sequence[str]) -> Iterator[str]:
    """What the scores of a classifier are of."""
    if labels:
        yield f"Its {len(labels)} classes, in the order of their scores: {', '.join(map(code, labels))}."


def _training(config: RunConfig, facts: TrainingFacts) -> Iterator[str]:
    training, data = config.training, config.data
    yield "## Training\n\n| | |\n|---|---|"
    rows = {
        "method": METHODS[config.method],
        "data": ", ".join(code(shown(source.path)) for source in data.train),
        "rows an epoch": f"{facts.rows:,}",
        "epochs, steps": f"{facts.epochs:.2f}, {facts.steps:,}",
        **TASKS[config.task].facts_for_card(config, facts.trained_tokens),
        "longest row": f"{data.max_length:,} tokens",
        "learning rate": f"{training.learning_rate}, {training.lr_scheduler_type}, warm-up {training.warmup_steps:g}",
        "batch": f"{training.per_device_train_batch_size} rows × {training.gradient_accumulation_steps} accumulated",
        "optimizer": f"{training.optim}, weight decay {training.weight_decay:g}, clipping {training.max_grad_norm}",
        **_regularisers(training),
        **({"new tokens": ", ".join(map(code, config.model.add_tokens))} if config.model.add_tokens else {}),
        "seed": str(config.seed),
        **({} if config.method == "full" else _adapter_rows(config)),
    }
    yield from (f"| {name} | {cell(value)} |" for name, value in rows.items())


def _regularisers(training: TrainingSection) -> dict[str, str]:
    """What was done against learning by heart, where anything was."""
    rows = {}
    if training.label_smoothing_factor:
        rows["label smoothing"] = f"{training.label_smoothing_factor:g}"
    if training.neftune_noise_alpha is not None:
        rows["noise on embeddings"] = f"NEFTune, alpha {training.neftune_noise_alpha:g}"
    return rows


STARTS = {"pissa": "PiSSA", "olora": "OLoRA", "loftq": "LoftQ", "eva": "EVA"}
"""What starts of an adapter are called."""


def _adapter_rows(config: RunConfig) -> dict[str, str]:
    lora = config.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(map(code, lora.target_modules))
    plus = f"LoRA+ (B at {lora.plus_ratio:g} times the rate)"
    kinds = (
        ("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora), (STARTS.get(lora.init, ""), lora.init in STARTS),
        (plus, lora.plus_ratio != 1),
    )  # fmt: skip
    extras = [word for word, used in kinds if used]
    rows = {
        "rank, alpha, dropout": ", ".join([f"{lora.r}, {lora.alpha:g}, {lora.dropout:g}", *extras]),
        "target modules": targets,
        "layers": _layers(lora.layers),
    }
    if lora.modules_to_save:
        rows["trained whole"] = ", ".join(map(code, lora.modules_to_save))
    if lora.target_parameters:
        rows["adapted parameters"] = ", ".join(map(code, lora.target_parameters))
    if lora.bias != "none":
        rows["trained biases"] = "all" if lora.bias == "all" else "those of the adapted modules"
    return rows


def _layers(chosen: str | Sequence[int] | StackLayers) -> str:
    if isinstance(chosen, StackLayers):
        return "; ".join(f"{stack} {_layers(layers)}" for stack, layers in chosen if layers is not None)
    return chosen if isinstance(chosen, str) else ", ".join(map(str, chosen))


def _result(facts: TrainingFacts, task: TaskName) -> Iterator[str]:
    each = TASKS[task].unit
    yield "## Measured\n"
    if facts.train_loss is not None:
        yield f"- last training loss: {facts.train_loss:.4f} a {each}"
    if facts.eval_loss is None:
        yield "- held-out loss: not measured"
    else:
        of_classes = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in facts.figures.items()]
        figures = ", ".join(of_classes) or f"perplexity {perplexity(facts.eval_loss):.4g}"
        yield f"- held-out loss: {facts.eval_loss:.4f} a {each} ({figures}), on {facts.eval_rows:,} rows"
    yield "\nNothing else was measured: neither other tasks, nor languages, nor safety."


def code(text: str) -> str:
    """A code span that shows `text` in one line; `|` in a table needs `cell` besides.

    Source: CommonMark 0.31, 6.1: a span ends at a run of as many backticks as it began with.
    """
    text = _flat(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    edge = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def prose(text: str) -> str:
    """A part of a sentence that shows `text` as it is."""
    return SPECIAL.sub(r"\\\1", _flat(text))


def cell(text: str) -> str:
    """Markdown as a cell of a table, where `|` would begin the next one, in code too."""
    return text.replace("|", "\\|")


def quoted(text: str) -> str:
    """A string of YAML, of JSON and of Python alike."""
    return json.dumps(_flat(text), ensure_ascii=False)


def _flat(text: str) -> str:
    """One line that can be written as UTF-8: a file's name may hold bytes that are no text."""
    return UNSEEN.sub(" ", text).encode("utf-8", errors="replace").decode("utf-8").strip()

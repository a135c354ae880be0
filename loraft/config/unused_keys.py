"""Which keys and sections of a config are used: not every one is by each task and method, or beside each other key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from loraft.config.schema import Method, RunConfig, TaskName

OF_TASKS: Mapping[str, frozenset[TaskName]] = MappingProxyType(
    {
        "data.source_prefix": frozenset({"seq2seq_lm"}),
        "data.source_lang": frozenset({"seq2seq_lm"}),
        "data.target_lang": frozenset({"seq2seq_lm"}),
        "data.max_target_length": frozenset({"seq2seq_lm"}),
        "data.labels": frozenset({"seq_cls"}),
        "data.chat_template": frozenset({"causal_lm"}),
        "data.train_on": frozenset({"causal_lm"}),
        "data.split_turns": frozenset({"causal_lm"}),
        "data.packing": frozenset({"causal_lm"}),
        "training.class_weights": frozenset({"seq_cls"}),
        "training.sample_prompts": frozenset({"causal_lm", "seq2seq_lm"}),
        "generation": frozenset({"causal_lm", "seq2seq_lm"}),
    }
)
"""The sections and keys that not every task uses, and the tasks that do."""

OF_METHODS: Mapping[str, frozenset[Method]] = MappingProxyType(
    {"lora": frozenset({"lora", "qlora"}), "quantization": frozenset({"qlora"})}
)
"""The sections that not every method uses, and the methods that do."""


def idle_keys(config: RunConfig) -> frozenset[str]:
    """The dotted keys and sections that the chosen task does not use, whatever they say."""
    return frozenset(key for key, tasks in OF_TASKS.items() if config.task not in tasks)


def unused_sections(config: RunConfig) -> tuple[str, ...]:
    """The sections that the file sets and the chosen method does not use."""
    return tuple(
        name for name, methods in OF_METHODS.items() if name in config.model_fields_set and config.method not in methods
    )


def unused_keys(config: RunConfig) -> tuple[tuple[str, str], ...]:
    """The dotted keys and sections that say something of their own and are not used, each with what does not use it."""
    by_task = (
        (key, f"task: {config.task}")
        for key, tasks in OF_TASKS.items()
        if config.task not in tasks and not _is_default(config, key)
    )
    data, training = config.data, config.training
    held_out = data.eval if isinstance(data.eval, tuple) else ()
    others = {
        ("training.group_by_length", "data.packing: fill"): training.group_by_length and data.packing == "fill",
        ("the weight of a source", "data.eval"): any(source.weight != 1 for source in held_out),
        ("training.metric_for_best_model", "data.eval: null"): training.metric_for_best_model != "loss"
        and data.eval is None,
        ("training.sample_prompts", "data.eval: null"): bool(training.sample_prompts) and data.eval is None,
    }
    return (*by_task, *(unused for unused, is_so in others.items() if is_so))


def _is_default(config: RunConfig, key: str) -> bool:
    section, _, name = key.partition(".")
    value = getattr(config, section)
    if not name:
        return bool(value == RunConfig.model_fields[section].default)
    return bool(getattr(value, name) == type(value).model_fields[name].default)

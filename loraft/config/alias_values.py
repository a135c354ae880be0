"""Keys of other tools whose value reads differently here, with the remedy that each value calls for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from loraft.config.yaml_scalars import Value


def bare(value: Value) -> str:
    """A value as YAML reads it back, with text left bare."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _targets(value: Value) -> str:
    words = value if isinstance(value, list) else str(value).split(",")
    names = [str(word).strip() for word in words]
    return "all-linear" if names in (["all"], ["all-linear"]) else f"[{', '.join(names)}]"


def _paths(value: Value) -> str:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    named = [part.get("path") if isinstance(part, dict) else part for part in parts]
    names = [name.strip() for name in named if isinstance(name, str)]
    if names and len(names) == len(parts):
        return names[0] if len(names) == 1 else f"[{', '.join(names)}]"
    return "a path, a Hub id, or a list of {path, split, weight, format, columns}"


def _held_out(value: Value) -> str:
    if not value:
        return "null"
    is_share = isinstance(value, float) and value < 1
    return bare(value) if is_share else "the fraction of the rows to hold out, such as 0.05"


def _packing(value: Value) -> str:
    return f"Write data.packing: {'fill' if value else 'auto'}."


def _strategy(value: Value, what: str) -> str:
    if value in ("no", False):
        if what == "eval":
            return "Write data.eval: null."
        return (
            "A run is always saved: training.save_steps: null is once an epoch, training.save_total_limit: 1 keeps one."
        )
    if value == "steps":
        return f"Leave it out, and give the number of steps as training.{what}_steps."
    return f"Leave it out: training.{what}_steps: null is once an epoch."


METHODS = "method: lora, qlora and full are what there is"
TASKS = {"CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq_lm", "SEQ_CLS": "seq_cls"}
PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}


def _no_such(value: Value, offered: str) -> str:
    """A value that would make another run: whatever stands nearest here is not what was asked for."""
    return f"There is no {bare(value)} here: {offered}."


def _bits(value: Value) -> str:
    if not value or value in ("none", "off"):
        return "Leave it out: without method: qlora nothing is quantized."
    if str(value).lower() in ("4", "4bit", "nf4", "fp4", "bnb.nf4", "bnb.fp4", "true"):
        return "Write method: qlora for 4 bits, the only width."
    return _no_such(value, "4 bits are the only width, by method: qlora")


def _adapter(value: Value) -> str:
    name = str(value).lower()
    if not value or name == "none":
        return "Write method: full."
    if name in ("dora", "rslora"):
        return f"Write method: lora and lora.use_{name}: true."
    return f"Write method: {name}." if name in ("lora", "qlora", "full") else _no_such(value, METHODS)


def _stage(value: Value) -> str:
    if value == "sft":
        return "Leave it out: the task is supervised fine-tuning, task: causal_lm."
    if value == "pt":
        return "Write task: causal_lm and data.format: text, which learns whole texts."
    return _no_such(value, "loraft trains by supervised fine-tuning alone, task: causal_lm, seq2seq_lm or seq_cls")


def _task(value: Value) -> str:
    ours = TASKS.get(str(value).upper().rpartition(".")[2])
    return f"Write task: {ours} at the top." if ours else _no_such(value, f"the tasks are {', '.join(TASKS.values())}")


def _bias(value: Value) -> str:
    return (
        "Leave it out: biases are not trained."
        if value in ("none", False, None)
        else _no_such(value, "biases are not trained")
    )


def _start(value: Value) -> str:
    if value in (True, None, "default"):
        return "Write lora.init: default."
    return "Write lora.init: gaussian." if value == "gaussian" else _no_such(value, "lora.init is default or gaussian")


def _dtype(value: Value, ours: str) -> str:
    if value is False:
        return (
            "Leave it out where another key says the precision; else write model.dtype: float32, "
            "since auto is bfloat16 where the machine multiplies it."
        )
    return f"Write model.dtype: {ours if value is True else 'auto'}."


def _option(value: Value, option: str) -> str:
    return (
        f"It is an option of the command: `loraft train CONFIG {option}`."
        if value
        else f"Leave it out: `loraft train CONFIG` does it with {option} alone."
    )


def _precision(value: Value) -> str:
    ours = PRECISIONS.get(str(value).lower()) if value else "float32"
    return f"Write model.dtype: {ours}." if ours else _no_such(value, "model.dtype is float32, bfloat16 or float16")


REMEDIES: Mapping[str, Callable[[Value], str]] = {
    "load_in_4bit": lambda value: "Write method: qlora." if value else "Leave it out: only method: qlora uses 4 bits.",
    "load_in_8bit": lambda value: (
        "8 bits are not offered; write method: qlora for 4 bits."
        if value
        else "Leave it out: without method: qlora nothing is quantized."
    ),
    "quantization_bit": _bits,
    "quantize": _bits,
    "bits": _bits,
    "qlora": lambda value: "Write method: qlora." if value else "Write method: lora.",
    "adapter": _adapter,
    "peft_type": lambda value: (
        "Write method: lora or method: qlora." if str(value).upper() == "LORA" else _no_such(value, METHODS)
    ),
    "use_peft": lambda value: "Write method: lora." if value else "Write method: full.",
    "use_lora": lambda value: "Write method: lora." if value else "Write method: full.",
    "finetuning_type": _adapter,
    "full_finetuning": lambda value: "Write method: full." if value else "Write method: lora.",
    "stage": _stage,
    "task_type": _task,
    "lora_task_type": _task,
    "lora_target": lambda value: f"Write lora.target_modules: {_targets(value)}.",
    "lora_target_linear": lambda value: (
        "Write lora.target_modules: all-linear."
        if value
        else "Leave it out, and name the modules in lora.target_modules, which is all-linear where nothing is said."
    ),
    "lora_attn_modules": lambda value: f"Write lora.target_modules: {_targets(value)}.",
    "apply_lora_to_mlp": lambda value: (
        "Write lora.target_modules: all-linear, which takes the MLP in."
        if value
        else "Write lora.target_modules: attention, which leaves the MLP out."
    ),
    "lora_bias": _bias,
    "bias": _bias,
    "init_lora_weights": _start,
    "datasets": lambda value: f"Write data.train: {_paths(value)}.",
    "dataset": lambda value: f"Write data.train: {_paths(value)}.",
    "test_datasets": lambda value: f"Write data.eval: {_paths(value)}.",
    "val_set_size": lambda value: f"Write data.eval: {_held_out(value)}.",
    "val_size": lambda value: f"Write data.eval: {_held_out(value)}.",
    "dataset_text_field": lambda value: f"Write data.columns: {{text: {value}}} (ours: theirs).",
    "template": lambda value: "Write data.chat_template: auto (the tokenizer's own), chatml, alpaca, or a .jinja file.",
    "train_on_inputs": lambda value: f"Write data.train_on: {'all' if value else 'completions'}.",
    "train_on_prompt": lambda value: f"Write data.train_on: {'all' if value else 'completions'}.",
    "assistant_only_loss": lambda value: f"Write data.train_on: {'completions' if value else 'all'}.",
    "completion_only_loss": lambda value: f"Write data.train_on: {'all' if value is False else 'completions'}.",
    "mask_history": lambda value: f"Write data.train_on: {'last' if value else 'completions'}.",
    "sample_packing": _packing,
    "neat_packing": _packing,
    "packing_strategy": lambda value: "Write data.packing: auto, off or fill.",
    "pad_to_sequence_len": lambda value: "Leave it out: rows are never padded to data.max_length.",
    "adam_betas": lambda value: "Write training.adam_beta1 and training.adam_beta2.",
    "bf16": lambda value: _dtype(value, "bfloat16"),
    "fp16": lambda value: _dtype(value, "float16"),
    "mixed_precision": _precision,
    "flash_attention": lambda value: "Write model.attn_implementation: auto.",
    "flash_attn": lambda value: "Write model.attn_implementation: auto.",
    "xformers_attention": lambda value: "Write model.attn_implementation: auto.",
    "use_flash_attention_2": lambda value: "Write model.attn_implementation: auto.",
    "sdp_attention": lambda value: f"Write model.attn_implementation: {'sdpa' if value else 'auto'}.",
    "use_gradient_checkpointing": lambda value: f"Write training.gradient_checkpointing: {bare(bool(value))}.",
    "eval_strategy": lambda value: _strategy(value, "eval"),
    "evaluation_strategy": lambda value: _strategy(value, "eval"),
    "save_strategy": lambda value: _strategy(value, "save"),
    "logging_strategy": lambda value: "Write training.logging_steps: the number of steps between two lines.",
    "evals_per_epoch": lambda value: "Write training.eval_steps: null (once an epoch) or a number of steps.",
    "saves_per_epoch": lambda value: "Write training.save_steps: null (once an epoch) or a number of steps.",
    "load_best_model_at_end": lambda value: "Leave it out: the best checkpoint is always kept, and is a TARGET.",
    "do_train": lambda value: "Leave it out: `loraft train` trains.",
    "do_eval": lambda value: "Leave it out: data.eval says what is evaluated." if value else "Write data.eval: null.",
    "overwrite_output_dir": lambda value: _option(value, "--overwrite"),
    "resume_from_checkpoint": lambda value: _option(value, "--resume"),
    "auto_resume_from_checkpoints": lambda value: _option(value, "--resume"),
    "use_wandb": lambda value: (
        "Write training.report_to: [wandb]." if value else "Leave it out: training.report_to: [] reports to nobody."
    ),
    "do_sample": lambda value: (
        "Write generation.temperature: a number above 0." if value else "Write generation.temperature: 0."
    ),
    "trust_remote_code": lambda value: "Code from a model's repository is never switched on by a file.",
    **dict.fromkeys(
        ("token", "hf_token", "hub_token", "use_auth_token", "api_key", "wandb_api_key", "access_token"),
        lambda value: "A config holds no secret: log in with the tool's own command, or set HF_TOKEN or its like.",
    ),
}
"""Keys whose value reads differently here; the function makes the remedy from the value found."""

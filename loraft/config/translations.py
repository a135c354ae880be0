"""Keys of other tools whose value reads differently here, with the remedy that each value calls for.

This module knows what a foreign value means in our words. It refuses to know keys that only have another name:
those are in `loraft.config.dialects`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from loraft.config.scalars import Value

__all__ = ["REMEDIES", "bare"]


def bare(value: Value) -> str:
    """A value as YAML reads it back, with text left bare."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _targets(value: Value) -> str:
    words = value if isinstance(value, list) else str(value).split(",")
    names = [str(word).strip() for word in words]
    return "all-linear" if names in (["all"], ["all-linear"]) else f"[{', '.join(names)}]"


def _paths(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        entries = [entry.get("path") if isinstance(entry, dict) else entry for entry in value]
        if len(entries) == 1 and isinstance(entries[0], str):
            return entries[0]
    return "a path, a Hub id, or a list of {path, split, weight, format, columns}"


def _held_out(value: Value) -> str:
    if not value:
        return "null"
    is_share = isinstance(value, float) and value < 1
    return bare(value) if is_share else "the fraction of the rows to hold out, such as 0.05"


def _packing(value: Value) -> str:
    return f"Write data.packing: {'fill' if value else 'auto'}."


def _strategy(value: Value, what: str) -> str:
    if value in ("no", False) and what == "eval":
        return "Write data.eval: null."
    if value == "steps":
        return f"Leave it out, and give the number of steps as training.{what}_steps."
    return f"Leave it out: training.{what}_steps: null is once an epoch."


REMEDIES: Mapping[str, Callable[[Value], str]] = {
    "load_in_4bit": lambda value: "Write method: qlora." if value else "Leave it out: only method: qlora uses 4 bits.",
    "load_in_8bit": lambda value: "8 bits are not offered; write method: qlora for 4 bits.",
    "quantization_bit": lambda value: "Write method: qlora for 4 bits, the only width.",
    "quantize": lambda value: "Write method: qlora for 4 bits, the only width.",
    "bits": lambda value: "Write method: qlora for 4 bits, the only width.",
    "qlora": lambda value: "Write method: qlora.",
    "adapter": lambda value: (
        f"Write method: {value if value in ('lora', 'qlora') else 'full' if not value else 'lora'}."
    ),
    "peft_type": lambda value: "Write method: lora or method: qlora.",
    "use_peft": lambda value: "Write method: lora." if value else "Write method: full.",
    "use_lora": lambda value: "Write method: lora." if value else "Write method: full.",
    "finetuning_type": lambda value: f"Write method: {value if value in ('lora', 'full') else 'lora or full'}.",
    "full_finetuning": lambda value: "Write method: full." if value else "Write method: lora.",
    "stage": lambda value: "Leave it out: the task is supervised fine-tuning, task: causal_lm.",
    "task_type": lambda value: "Write task: causal_lm at the top.",
    "lora_task_type": lambda value: "Write task: causal_lm at the top.",
    "lora_target": lambda value: f"Write lora.target_modules: {_targets(value)}.",
    "lora_target_linear": lambda value: "Write lora.target_modules: all-linear.",
    "lora_attn_modules": lambda value: f"Write lora.target_modules: {_targets(value)}.",
    "apply_lora_to_mlp": lambda value: "Write lora.target_modules: all-linear, which takes the MLP in.",
    "lora_bias": lambda value: "Leave it out: biases are not trained.",
    "bias": lambda value: "Leave it out: biases are not trained.",
    "init_lora_weights": lambda value: f"Write lora.init: {'gaussian' if value == 'gaussian' else 'default'}.",
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
    "completion_only_loss": lambda value: f"Write data.train_on: {'completions' if value else 'all'}.",
    "mask_history": lambda value: f"Write data.train_on: {'last' if value else 'completions'}.",
    "sample_packing": _packing,
    "neat_packing": _packing,
    "packing_strategy": lambda value: "Write data.packing: auto, off or fill.",
    "pad_to_sequence_len": lambda value: "Leave it out: rows are never padded to data.max_length.",
    "adam_betas": lambda value: "Write training.adam_beta1 and training.adam_beta2.",
    "bf16": lambda value: f"Write model.dtype: {'bfloat16' if value is True else 'auto'}.",
    "fp16": lambda value: f"Write model.dtype: {'float16' if value is True else 'auto'}.",
    "mixed_precision": lambda value: "Write model.dtype: auto, float32, bfloat16 or float16.",
    "flash_attention": lambda value: "Write model.attn_implementation: auto.",
    "flash_attn": lambda value: "Write model.attn_implementation: auto.",
    "xformers_attention": lambda value: "Write model.attn_implementation: auto.",
    "use_flash_attention_2": lambda value: "Write model.attn_implementation: auto.",
    "sdp_attention": lambda value: "Write model.attn_implementation: sdpa.",
    "use_gradient_checkpointing": lambda value: f"Write training.gradient_checkpointing: {bare(bool(value))}.",
    "eval_strategy": lambda value: _strategy(value, "eval"),
    "evaluation_strategy": lambda value: _strategy(value, "eval"),
    "save_strategy": lambda value: _strategy(value, "save"),
    "logging_strategy": lambda value: "Write training.logging_steps: the number of steps between two lines.",
    "evals_per_epoch": lambda value: "Write training.eval_steps: null (once an epoch) or a number of steps.",
    "saves_per_epoch": lambda value: "Write training.save_steps: null (once an epoch) or a number of steps.",
    "load_best_model_at_end": lambda value: "Leave it out: the best checkpoint is always kept, and is a TARGET.",
    "do_train": lambda value: "Leave it out: `loraft train` trains.",
    "do_eval": lambda value: "Leave it out: data.eval says what is evaluated; null evaluates nothing.",
    "overwrite_output_dir": lambda value: "It is an option of the command: `loraft train CONFIG --overwrite`.",
    "resume_from_checkpoint": lambda value: "It is an option of the command: `loraft train CONFIG --resume`.",
    "auto_resume_from_checkpoints": lambda value: "It is an option of the command: `loraft train CONFIG --resume`.",
    "use_wandb": lambda value: "Write training.report_to: [wandb].",
    "do_sample": lambda value: "Write generation.temperature: 0 for greedy answers, above 0 for drawn ones.",
    "trust_remote_code": lambda value: "Code from a model's repository is never switched on by a file.",
    **dict.fromkeys(
        ("token", "hf_token", "hub_token", "use_auth_token", "api_key", "wandb_api_key", "access_token"),
        lambda value: "A config holds no secret: log in with the tool's own command, or set HF_TOKEN or its like.",
    ),
}
"""Keys whose value reads differently here; the function makes the remedy from the value found."""

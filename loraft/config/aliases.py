"""What other tools call our keys and values: a table, and the sentence that a line of it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loraft.config.alias_values import REMEDIES, bare
from loraft.config.yaml_scalars import Value

SAME_VALUE: Mapping[str, str] = {
    # peft
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "layers_to_transform": "lora.layers",
    "lora_layers_to_transform": "lora.layers",
    "lora_modules_to_save": "lora.modules_to_save",
    "additional_target": "lora.modules_to_save",
    "peft_use_dora": "lora.use_dora",
    "peft_use_rslora": "lora.use_rslora",
    "lora_model_dir": "lora.start_from",
    "adapter_name_or_path": "lora.start_from",
    # bitsandbytes
    "bnb_4bit_quant_type": "quantization.type",
    "quant_type": "quantization.type",
    "quantization_type": "quantization.type",
    "bnb_4bit_use_double_quant": "quantization.double_quant",
    "use_double_quant": "quantization.double_quant",
    "use_nested_quant": "quantization.double_quant",
    "double_quantization": "quantization.double_quant",
    "bnb_4bit_compute_dtype": "quantization.compute_dtype",
    # the model
    "base_model": "model.name_or_path",
    "model_name_or_path": "model.name_or_path",
    "pretrained_model_name_or_path": "model.name_or_path",
    "base_model_name_or_path": "model.name_or_path",
    "model_name": "model.name_or_path",
    "model_id": "model.name_or_path",
    "model_path": "model.name_or_path",
    "checkpoint_dir": "model.name_or_path",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "tokenizer_name": "model.tokenizer",
    "tokenizer_name_or_path": "model.tokenizer",
    "tokenizer_config": "model.tokenizer",
    # the data
    "dataset_name": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "train_dataset": "data.train",
    "dataset_path": "data.train",
    "validation_file": "data.eval",
    "eval_dataset": "data.eval",
    "eval_file": "data.eval",
    "dataset_config": "data.name",
    "dataset_config_name": "data.name",
    "dataset_train_split": "data.split",
    "train_split": "data.split",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "model_max_length": "data.max_length",
    "block_size": "data.max_length",
    "chat_template_path": "data.chat_template",
    "chat_template_jinja": "data.chat_template",
    # the run
    "micro_batch_size": "training.per_device_train_batch_size",
    "batch_size": "training.per_device_train_batch_size",
    "train_batch_size": "training.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "grad_accumulation_steps": "training.gradient_accumulation_steps",
    "accumulate_grad_batches": "training.gradient_accumulation_steps",
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "n_epochs": "training.num_train_epochs",
    "max_epochs": "training.num_train_epochs",
    "iters": "training.max_steps",
    "steps": "training.max_steps",
    "num_train_steps": "training.max_steps",
    "max_train_steps": "training.max_steps",
    "lr": "training.learning_rate",
    "lr_scheduler": "training.lr_scheduler_type",
    "scheduler": "training.lr_scheduler_type",
    "warmup_ratio": "training.warmup_steps",
    "lr_warmup_steps": "training.warmup_steps",
    "num_warmup_steps": "training.warmup_steps",
    "optimizer": "training.optim",
    "max_norm": "training.max_grad_norm",
    "grad_clip": "training.max_grad_norm",
    "clip_grad_norm": "training.max_grad_norm",
    "gradient_clip_val": "training.max_grad_norm",
    "gradient_clipping": "training.max_grad_norm",
    "beta1": "training.adam_beta1",
    "beta2": "training.adam_beta2",
    "enable_activation_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing": "training.gradient_checkpointing",
    "log_every_n_steps": "training.logging_steps",
    "log_interval": "training.logging_steps",
    "output_path": "training.output_dir",
    "out_dir": "training.output_dir",
    "save_dir": "training.output_dir",
    "wandb_project": "training.project",
    "wandb_name": "training.run_name",
    "wandb_run_name": "training.run_name",
    "wandb_run_id": "training.run_name",
    "random_state": "seed",
    "random_seed": "seed",
    "train_seed": "seed",
    "max_tokens": "generation.max_new_tokens",
}
"""Keys of other tools that take the values of a key here."""
SECTIONS: Mapping[str, str] = {
    **dict.fromkeys(("peft", "peft_config", "lora_config", "lora_args", "adapter_config"), "lora"),
    **dict.fromkeys(("bnb_config", "quantization_config", "bitsandbytes", "bnb"), "quantization"),
    **dict.fromkeys(("training_args", "training_arguments", "trainer", "train_args", "trainer_config"), "training"),
    **dict.fromkeys(("model_args", "model_config", "base"), "model"),
    **dict.fromkeys(("data_args", "dataset_config_args", "data_config"), "data"),
    **dict.fromkeys(("generation_config", "generating_args", "sampling"), "generation"),
}
"""Sections of other tools whose keys are those of one section here."""

VALUES: Mapping[str, str] = {
    **dict.fromkeys(("fp32", "f32", "float", "torch.float32"), "float32"),
    **dict.fromkeys(("bf16", "torch.bfloat16", "bf16-true", "bf16-mixed"), "bfloat16"),
    **dict.fromkeys(("fp16", "f16", "half", "torch.float16", "16-true"), "float16"),
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw8bit"), "adamw_8bit"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32"), "paged_adamw_32bit"),
    **dict.fromkeys(("constant_with_warmup",), "constant"),
    **dict.fromkeys(("flash_attention_2", "flash_attention_3", "flash_attn", "fa2"), "auto"),
    **dict.fromkeys(("all", "all_linear", "linear"), "all-linear"),
    **dict.fromkeys(("chat", "chat_template", "openai", "chatml_messages", "conversational"), "messages"),
    **dict.fromkeys(("prompt-completion", "instruction"), "prompt_completion"),
    **dict.fromkeys(("sft", "causal-lm", "causallm", "clm"), "causal_lm"),
    **dict.fromkeys(("eval_loss",), "loss"),
    **dict.fromkeys(("none", "no", "false"), "off"),
    **dict.fromkeys(("full_finetuning", "sft_full"), "full"),
}
"""Words of other tools for the same thing."""
ONLY_NEAR: Mapping[str, tuple[str, str]] = {
    "adam": ("adamw", "its weight decay is apart from the gradient"),
    "cosine_with_restarts": ("cosine", "it falls once and does not restart"),
    "cosine_with_min_lr": ("cosine", "it falls to 0"),
    "constant_with_cooldown": ("constant", "it does not fall at the end"),
}
"""Words of other tools for what is not here, with what stands nearest and in what it differs."""


def answer_to_key(
    key: str, value: Value, choices: Callable[[str], tuple[str, ...]], is_open: Callable[[str], bool]
) -> str | None:
    """What to write instead of another tool's `key: value`; None where no tool that we know has the key.

    Args:
        key: The key as it was found.
        value: What was found under it.
        choices: The words that a dotted key of ours takes.
        is_open: Whether it takes other texts too.
    """
    name = key.replace("-", "_").lower()
    if name in REMEDIES:
        return REMEDIES[name](value)
    if name in SECTIONS:
        return f"Write its keys in the section {SECTIONS[name]}."
    ours = SAME_VALUE.get(name)
    if ours is None:
        return None
    if isinstance(value, dict | list):
        return f"Write {ours}."
    return _renamed(ours, value, choices(ours), is_open=is_open(ours))


def _renamed(ours: str, value: Value, words: tuple[str, ...], *, is_open: bool) -> str:
    if same := answer_to_value(str(value), words):
        return f"Write {ours}: {same}."
    if isinstance(value, str) and words and value not in words and not is_open:
        return no_such_value(value, words, f"{ours} is ")
    return f"Write {ours}: {bare(value)}."


def answer_to_value(value: str, choices: tuple[str, ...]) -> str | None:
    """Which of `choices` another tool calls `value`; None where it is no name that we know."""
    ours = VALUES.get(value.lower())
    return ours if ours in choices else None


def no_such_value(value: str, choices: tuple[str, ...], ours: str = "") -> str:
    """What to say of a value that is nothing here; what stands nearest makes another run, and is told with that."""
    near, difference = ONLY_NEAR.get(value.lower(), ("", ""))
    if near not in choices:
        return f"There is no {value} here: {ours}{', '.join(choices[:-1])} or {choices[-1]}."
    return f"There is no {value} here: {ours}{near} at the nearest, and {difference}."

"""What other tools call our keys and values, and what to write here instead.

The names are those of transformers, peft, bitsandbytes, TRL, axolotl, LLaMA-Factory, unsloth, torchtune and litgpt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

from loraft.config.schema_info import expected, path_of
from loraft.config.yaml_nodes import Value

T = TypeVar("T")
Answer = str | tuple[str, str] | Mapping[str, str] | Callable[[Value], str]
"""A remedy, in which {value} is the value found; that where a key is switched on and that where it is off; those for
some words, of which none is null and what is empty and * is any other; or the function that makes it from the value."""


def _each(table: Mapping[str, T]) -> dict[str, T]:
    """A table with a line for each of the words that a line of `table` begins with."""
    return {word: meaning for words, meaning in table.items() for word in words.split()}


def _bare(value: Value) -> str:
    """A value as YAML reads it back, with text left bare."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _targets(value: Value) -> str:
    words = value if isinstance(value, list) else str(value).split(",")
    names = [str(word).strip() for word in words]
    found = "all-linear" if names in (["all"], ["all-linear"]) else f"[{', '.join(names)}]"
    return f"Write lora.target_modules: {found}."


def _paths(value: Value) -> str:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    named = [part.get("path") if isinstance(part, dict) else part for part in parts]
    names = [name.strip() for name in named if isinstance(name, str)]
    if not names or len(names) < len(parts):
        return "a path, a Hub id, or a list of {path, split, weight, format, columns}"
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _held_out(value: Value) -> str:
    is_share = isinstance(value, float) and value < 1
    share = _bare(value) if is_share else "the fraction of the rows to hold out, such as 0.05"
    return f"Write data.eval: {share if value else 'null'}."


ALL, COMPLETIONS = "Write data.train_on: all.", "Write data.train_on: completions."
ATTENTION = "Write model.attn_implementation: auto."
DTYPE_ELSEWHERE = (
    "Leave it out where another key says the precision; else write model.dtype: float32, "
    "since auto is bfloat16 where the machine multiplies it."
)
METHODS = "There is no {value} here: method: lora, qlora and full are what there is."
OPTION = (
    "It is given beside the config: `loraft.train(CONFIG, %s=True)`.",
    "Leave it out: `loraft.train(CONFIG)` does it with `%s` alone.",
)
UNQUANTIZED = "Leave it out: without method: qlora nothing is quantized."

SAME_VALUE: Mapping[str, str] = _each(
    {
        "lora_r lora_rank rank": "lora.r",
        "lora_alpha": "lora.alpha",
        "lora_dropout": "lora.dropout",
        "lora_target_modules": "lora.target_modules",
        "layers_to_transform lora_layers_to_transform": "lora.layers",
        "lora_modules_to_save additional_target": "lora.modules_to_save",
        "peft_use_dora": "lora.use_dora",
        "peft_use_rslora": "lora.use_rslora",
        "lora_model_dir adapter_name_or_path": "lora.start_from",
        "bnb_4bit_quant_type quant_type quantization_type": "quantization.type",
        "bnb_4bit_use_double_quant use_double_quant use_nested_quant double_quantization": "quantization.double_quant",
        "bnb_4bit_compute_dtype": "quantization.compute_dtype",
        "base_model model_name_or_path pretrained_model_name_or_path base_model_name_or_path": "model.name_or_path",
        "model_name model_id model_path checkpoint_dir": "model.name_or_path",
        "model_revision": "model.revision",
        "torch_dtype precision": "model.dtype",
        "tokenizer_name tokenizer_name_or_path tokenizer_config": "model.tokenizer",
        "dataset_name train_file train_data train_dataset dataset_path": "data.train",
        "validation_file eval_dataset eval_file": "data.eval",
        "dataset_config dataset_config_name": "data.name",
        "dataset_train_split train_split": "data.split",
        "sequence_len cutoff_len max_seq_length max_seq_len model_max_length block_size": "data.max_length",
        "chat_template_path chat_template_jinja": "data.chat_template",
        "micro_batch_size batch_size train_batch_size": "training.per_device_train_batch_size",
        "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
        "eval_batch_size": "training.per_device_eval_batch_size",
        "grad_accumulation_steps accumulate_grad_batches": "training.gradient_accumulation_steps",
        "gradient_accumulation": "training.gradient_accumulation_steps",
        "epochs num_epochs n_epochs max_epochs": "training.num_train_epochs",
        "iters steps num_train_steps max_train_steps": "training.max_steps",
        "lr": "training.learning_rate",
        "lr_scheduler scheduler": "training.lr_scheduler_type",
        "warmup_ratio lr_warmup_steps num_warmup_steps": "training.warmup_steps",
        "optimizer": "training.optim",
        "max_norm grad_clip clip_grad_norm gradient_clip_val gradient_clipping": "training.max_grad_norm",
        "beta1": "training.adam_beta1",
        "beta2": "training.adam_beta2",
        "enable_activation_checkpointing activation_checkpointing": "training.gradient_checkpointing",
        "log_every_n_steps log_interval": "training.logging_steps",
        "output_path out_dir save_dir": "training.output_dir",
        "wandb_project": "training.project",
        "wandb_name wandb_run_name wandb_run_id": "training.run_name",
        "random_state random_seed train_seed": "seed",
        "max_tokens": "generation.max_new_tokens",
    }
)
"""Keys of other tools that take the values of a key here."""

ANSWERS: Mapping[str, Answer] = _each(
    {
        "peft peft_config lora_config lora_args adapter_config": "Write its keys in the section lora.",
        "bnb_config quantization_config bitsandbytes bnb": "Write its keys in the section quantization.",
        "training_args training_arguments trainer train_args trainer_config": "Write its keys in the section training.",
        "model_args model_config base": "Write its keys in the section model.",
        "data_args dataset_config_args data_config": "Write its keys in the section data.",
        "generation_config generating_args sampling": "Write its keys in the section generation.",
        "load_in_4bit": ("Write method: qlora.", "Leave it out: only method: qlora uses 4 bits."),
        "load_in_8bit": ("8 bits are not offered; write method: qlora for 4 bits.", UNQUANTIZED),
        "quantization_bit quantize bits": {
            "none false off": UNQUANTIZED,
            "4 4bit nf4 fp4 true": "Write method: qlora for 4 bits, the only width.",
            "*": "There is no {value} here: 4 bits are the only width, by method: qlora.",
        },
        "qlora": ("Write method: qlora.", "Write method: lora."),
        "adapter finetuning_type": {
            "none false": "Write method: full.",
            "lora": "Write method: lora.",
            "qlora": "Write method: qlora.",
            "full": "Write method: full.",
            "dora": "Write method: lora and lora.use_dora: true.",
            "rslora": "Write method: lora and lora.use_rslora: true.",
            "*": METHODS,
        },
        "peft_type": {"lora": "Write method: lora or method: qlora.", "*": METHODS},
        "use_peft use_lora": ("Write method: lora.", "Write method: full."),
        "full_finetuning": ("Write method: full.", "Write method: lora."),
        "stage": {
            "sft": "Leave it out: the task is supervised fine-tuning, task: causal_lm.",
            "pt": "Write task: causal_lm and data.format: text, which learns whole texts.",
            "*": "There is no {value} here: loraft trains by supervised fine-tuning alone, "
            "task: causal_lm, seq2seq_lm or seq_cls.",
        },
        "task_type lora_task_type": {
            "causal_lm": "Write task: causal_lm at the top.",
            "seq_2_seq_lm": "Write task: seq2seq_lm at the top.",
            "seq_cls": "Write task: seq_cls at the top.",
            "*": "There is no {value} here: the tasks are causal_lm, seq2seq_lm, seq_cls.",
        },
        "lora_target lora_attn_modules": _targets,
        "lora_target_linear": (
            "Write lora.target_modules: all-linear.",
            "Leave it out, and name the modules in lora.target_modules, which is all-linear where nothing is said.",
        ),
        "apply_lora_to_mlp": (
            "Write lora.target_modules: all-linear, which takes the MLP in.",
            "Write lora.target_modules: attention, which leaves the MLP out.",
        ),
        "lora_bias bias": {
            "none false": "Leave it out: biases are not trained.",
            "*": "There is no {value} here: biases are not trained.",
        },
        "init_lora_weights": {
            "true none default": "Write lora.init: default.",
            "gaussian": "Write lora.init: gaussian.",
            "*": "There is no {value} here: lora.init is default or gaussian.",
        },
        "datasets dataset": lambda value: f"Write data.train: {_paths(value)}.",
        "test_datasets": lambda value: f"Write data.eval: {_paths(value)}.",
        "val_set_size val_size": _held_out,
        "dataset_text_field": "Write data.columns: {text: {value}} (ours: theirs).",
        "template": "Write data.chat_template: auto (the tokenizer's own), chatml, alpaca, or a .jinja file.",
        "train_on_inputs train_on_prompt": (ALL, COMPLETIONS),
        "assistant_only_loss": (COMPLETIONS, ALL),
        "completion_only_loss": {"false": ALL, "*": COMPLETIONS},
        "mask_history": ("Write data.train_on: last.", COMPLETIONS),
        "sample_packing neat_packing": ("Write data.packing: fill.", "Write data.packing: auto."),
        "packing_strategy": "Write data.packing: auto, off or fill.",
        "pad_to_sequence_len": "Leave it out: rows are never padded to data.max_length.",
        "adam_betas": "Write training.adam_beta1 and training.adam_beta2.",
        "bf16": {"true": "Write model.dtype: bfloat16.", "false": DTYPE_ELSEWHERE, "*": "Write model.dtype: auto."},
        "fp16": {"true": "Write model.dtype: float16.", "false": DTYPE_ELSEWHERE, "*": "Write model.dtype: auto."},
        "mixed_precision": {
            "no none false": "Write model.dtype: float32.",
            "fp16": "Write model.dtype: float16.",
            "bf16": "Write model.dtype: bfloat16.",
            "*": "There is no {value} here: model.dtype is float32, bfloat16 or float16.",
        },
        "flash_attention flash_attn xformers_attention use_flash_attention_2": ATTENTION,
        "sdp_attention": ("Write model.attn_implementation: sdpa.", ATTENTION),
        "use_gradient_checkpointing": (
            "Write training.gradient_checkpointing: true.",
            "Write training.gradient_checkpointing: false.",
        ),
        "eval_strategy evaluation_strategy": {
            "no false": "Write data.eval: null.",
            "steps": "Leave it out, and give the number of steps as training.eval_steps.",
            "*": "Leave it out: training.eval_steps: null is once an epoch.",
        },
        "save_strategy": {
            "no false": "A run is always saved: training.save_steps: null is once an epoch, "
            "training.save_total_limit: 1 keeps one.",
            "steps": "Leave it out, and give the number of steps as training.save_steps.",
            "*": "Leave it out: training.save_steps: null is once an epoch.",
        },
        "logging_strategy": "Write training.logging_steps: the number of steps between two lines.",
        "evals_per_epoch": "Write training.eval_steps: null (once an epoch) or a number of steps.",
        "saves_per_epoch": "Write training.save_steps: null (once an epoch) or a number of steps.",
        "load_best_model_at_end": "Leave it out: the best checkpoint is always kept, and can be named as a target.",
        "do_train": "Leave it out: `loraft.train` trains.",
        "do_eval": ("Leave it out: data.eval says what is evaluated.", "Write data.eval: null."),
        "overwrite_output_dir": (OPTION[0] % "overwrite", OPTION[1] % "overwrite"),
        "resume_from_checkpoint auto_resume_from_checkpoints": (OPTION[0] % "resume", OPTION[1] % "resume"),
        "use_wandb": ("Write training.report_to: [wandb].", "Leave it out: training.report_to: [] reports to nobody."),
        "do_sample": ("Write generation.temperature: a number above 0.", "Write generation.temperature: 0."),
        "trust_remote_code": "Code from a model's repository is never switched on by a file.",
        "token hf_token hub_token use_auth_token api_key wandb_api_key access_token": (
            "A config holds no secret: log in with the tool's own command, or set HF_TOKEN or its like."
        ),
    }
)
"""Keys of other tools whose value reads differently here."""

VALUES: Mapping[str, str] = _each(
    {
        "fp32 f32 float torch.float32": "float32",
        "bf16 torch.bfloat16 bf16-true bf16-mixed": "bfloat16",
        "fp16 f16 half torch.float16 16-true": "float16",
        "adamw_torch adamw_torch_fused adamw_hf adamw_apex_fused": "adamw",
        "adamw_bnb_8bit adamw8bit": "adamw_8bit",
        "paged_adamw paged_adamw_32": "paged_adamw_32bit",
        "constant_with_warmup": "constant",
        "flash_attention_2 flash_attention_3 flash_attn fa2": "auto",
        "all all_linear linear": "all-linear",
        "chat chat_template openai chatml_messages conversational": "messages",
        "prompt-completion instruction": "prompt_completion",
        "sft causal-lm causallm clm": "causal_lm",
        "eval_loss": "loss",
        "none no false": "off",
        "full_finetuning sft_full": "full",
    }
)
"""Words of other tools for the same thing."""
ONLY_NEAR: Mapping[str, tuple[str, str]] = {
    "adam": ("adamw", "its weight decay is apart from the gradient"),
    "cosine_with_restarts": ("cosine", "it falls once and does not restart"),
    "cosine_with_min_lr": ("cosine", "it falls to 0"),
    "constant_with_cooldown": ("constant", "it does not fall at the end"),
}
"""Words of other tools for what is not here, with what stands nearest and in what it differs."""


def answer_to_key(key: str, value: Value) -> str | None:
    """What to write instead of another tool's `key: value`; None where no tool that we know has the key."""
    name = key.replace("-", "_").lower()
    if name in ANSWERS:
        return _remedy_in(ANSWERS[name], value)
    ours = SAME_VALUE.get(name)
    if ours is None:
        return None
    wanted = expected(path_of(ours))
    assert wanted is not None, f"{ours} is a key of the schema"
    if isinstance(value, dict | list):
        return f"Write {ours}."
    if same := answer_to_value(str(value), wanted.choices):
        return f"Write {ours}: {same}."
    if isinstance(value, str) and wanted.choices and value not in wanted.choices and not wanted.takes(str):
        return no_such_value(value, wanted.choices, f"{ours} is ")
    return f"Write {ours}: {_bare(value)}."


def _remedy_in(answer: Answer, value: Value) -> str:
    if isinstance(answer, tuple):
        return answer[0] if value else answer[1]
    if isinstance(answer, Mapping):
        # A name such as bnb.nf4 is its last part.
        word = str(value).lower().rpartition(".")[2] if value or value is False else "none"
        answer = next((remedy for words, remedy in answer.items() if word in words.split()), answer["*"])
    return answer.replace("{value}", _bare(value)) if isinstance(answer, str) else answer(value)


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

"""Other tools' names are answered with ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.aliases import ANSWERS, ONLY_NEAR, SAME_VALUE, VALUES, answer_to_value
from loraft.config.schema_info import expected, path_of, places_of
from loraft.config.validation_errors import advice_for_key
from loraft.config.yaml_nodes import Value
from tests.config.written_files import problems, write

PRECISION = (
    "Leave it out where another key says the precision; else write model.dtype: float32, "
    "since auto is bfloat16 where the machine multiplies it."
)
RESTARTS = (
    "There is no cosine_with_restarts here: training.lr_scheduler_type is cosine at the nearest, "
    "and it falls once and does not restart."
)
SCHEDULES = (
    "linear, cosine, constant, constant_with_warmup, cosine_with_min_lr, polynomial, inverse_sqrt or "
    "warmup_stable_decay"
)
TRAINED = "loraft trains by examples and by pairs of answers, as task and preference.loss say"


@pytest.mark.parametrize("ours", sorted(set(SAME_VALUE.values())))
def test_every_answer_names_a_key_that_exists(ours: str) -> None:
    assert expected(path_of(ours)) is not None


def test_no_key_of_ours_is_taken_for_a_foreign_one() -> None:
    assert [key for key in (*SAME_VALUE, *ANSWERS) if places_of(key)] == []


def test_no_key_has_two_answers() -> None:
    assert SAME_VALUE.keys().isdisjoint(ANSWERS)


def test_every_foreign_value_has_a_place_for_ours() -> None:
    keys = ("model.dtype", "model.attn_implementation", "training.optim", "training.lr_scheduler_type", "data.format")
    keys += ("lora.target_modules", "task", "method", "data.packing", "training.metric_for_best_model")
    keys += ("training.gradient_checkpointing",)
    choices = {choice for key in keys for choice in expected(path_of(key)).choices}  # type: ignore[union-attr]
    assert set(VALUES.values()) <= choices
    assert {near for near, _ in ONLY_NEAR.values()} <= choices
    assert VALUES.keys().isdisjoint(ONLY_NEAR)


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("lora_alpha", 32, "Write lora.alpha: 32."),
        ("lora-rank", 8, "Write lora.r: 8."),
        ("bnb_4bit_quant_type", "nf4", "Write quantization.type: nf4."),
        ("bnb_4bit_use_double_quant", True, "Write quantization.double_quant: true."),
        ("bnb_4bit_compute_dtype", "torch.bfloat16", "Write quantization.compute_dtype: bfloat16."),
        ("layers_to_transform", [0, 1], "Write lora.layers."),
        ("layers_to_transform", "all", "Write lora.layers: all."),
        ("max_seq_length", 512, "Write data.max_length: 512."),
        ("warmup_ratio", 0.03, "Write training.warmup_steps: 0.03."),
        ("num_epochs", 3, "Write training.num_train_epochs: 3."),
        ("torch_dtype", "bf16", "Write model.dtype: bfloat16."),
        ("optimizer", "adamw_bnb_8bit", "Write training.optim: adamw_8bit."),
        ("base_model", "a/b", "Write model.name_or_path: a/b."),
        ("micro_batch_size", 2, "Write training.per_device_train_batch_size: 2."),
        ("sequence_len", 4096, "Write data.max_length: 4096."),
        ("cutoff_len", 4096, "Write data.max_length: 4096."),
        ("gradient_clipping", 0.3, "Write training.max_grad_norm: 0.3."),
        ("load_in_4bit", True, "Write method: qlora."),
        ("load_in_8bit", True, "Write method: qlora and quantization.type: int8."),
        ("adapter", "qlora", "Write method: qlora."),
        ("adapter", None, "Write method: full."),
        ("finetuning_type", "full", "Write method: full."),
        ("lora_target", "q_proj,v_proj", "Write lora.target_modules: [q_proj, v_proj]."),
        ("lora_target", "all", "Write lora.target_modules: all-linear."),
        ("lora_target_linear", True, "Write lora.target_modules: all-linear."),
        ("val_set_size", 0.05, "Write data.eval: 0.05."),
        ("val_set_size", 0, "Write data.eval: null."),
        ("val_set_size", 2000, "Write data.eval: the fraction of the rows to hold out, such as 0.05."),
        ("datasets", [{"path": "rows.jsonl", "type": "alpaca"}], "Write data.train: rows.jsonl."),
        ("train_on_inputs", False, "Write data.train_on: completions."),
        ("sample_packing", True, "Write data.packing: fill."),
        ("bf16", True, "Write model.dtype: bfloat16."),
        ("bf16", "auto", "Write model.dtype: auto."),
        ("load_in_4bit", "no", "Leave it out: only method: qlora uses 4 bits."),
        ("sample_packing", "Off", "Write data.packing: auto."),
        ("bf16", "yes", "Write model.dtype: bfloat16."),
        ("rl", "no", "Leave it out: the task is supervised fine-tuning, task: causal_lm."),
        ("dataset_text_field", "no", "Write data.columns: {text: no} (ours: theirs)."),
        ("evaluation_strategy", "no", "Write data.eval: null."),
        ("evaluation_strategy", "epoch", "Leave it out: training.eval_steps: null is once an epoch."),
        ("dataset_text_field", "body", "Write data.columns: {text: body} (ours: theirs)."),
        ("bf16", False, PRECISION),
        ("fp16", False, PRECISION),
        ("mixed_precision", "no", "Write model.dtype: float32."),
        ("mixed_precision", "fp8", "There is no fp8 here: model.dtype is float32, bfloat16 or float16."),
        ("lr_scheduler", "cosine_with_restarts", RESTARTS),
        ("lr_scheduler", "constant_with_warmup", "Write training.lr_scheduler_type: constant_with_warmup."),
        ("lr_scheduler", "greedy", f"There is no greedy here: training.lr_scheduler_type is {SCHEDULES}."),
        ("min_lr", 1e-5, "Write training.lr_scheduler_kwargs: {min_lr: 1e-05}."),
        ("num_decay_steps", 20, "Write training.lr_scheduler_kwargs: {num_decay_steps: 20}."),
        (
            "cosine_min_lr_ratio",
            0.1,
            "Write training.lr_scheduler_type: cosine_with_min_lr and training.lr_scheduler_kwargs: "
            "{min_lr_rate: 0.1}.",
        ),
        ("optimizer", "lion_8bit", "Write training.optim: lion_8bit."),
        (
            "optimizer",
            "lion_32bit",
            "There is no lion_32bit here: training.optim is lion_8bit at the nearest, and its state is in 8 bits.",
        ),
        ("use_muon", True, "Write training.optim: muon."),
        ("label_smooth", 0.1, "Write training.label_smoothing_factor: 0.1."),
        ("noisy_embedding_alpha", 5, "Write training.neftune_noise_alpha: 5."),
        ("loraplus_lr_ratio", 16, "Write lora.plus_ratio: 16."),
        ("stage", "sft", "Leave it out: the task is supervised fine-tuning, task: causal_lm."),
        ("stage", "pt", "Write task: causal_lm and data.format: text, which learns whole texts."),
        ("stage", "dpo", "Write task: preference and preference.loss: dpo."),
        ("stage", "ppo", f"There is no ppo here: {TRAINED}."),
        ("load_in_8bit", False, "Leave it out: without method: qlora nothing is quantized."),
        ("quantization_bit", 4, "Write method: qlora, which is for 4 bits where quantization.type says nothing else."),
        ("quantization_bit", 8, "Write method: qlora and quantization.type: int8."),
        ("quantization_bit", 3, "There is no 3 here: 4 bits and 8 bits are the widths, by method: qlora."),
        ("quantization_bit", None, "Leave it out: without method: qlora nothing is quantized."),
        ("qlora", False, "Write method: lora."),
        ("adapter", "ia3", "There is no ia3 here: method: lora, qlora and full are what there is."),
        ("adapter", "dora", "Write method: lora and lora.use_dora: true."),
        ("finetuning_type", "freeze", "There is no freeze here: method: lora, qlora and full are what there is."),
        (
            "peft_type",
            "PREFIX_TUNING",
            "There is no PREFIX_TUNING here: method: lora, qlora and full are what there is.",
        ),
        ("task_type", "SEQ_CLS", "Write task: seq_cls at the top."),
        ("task_type", "TOKEN_CLS", "There is no TOKEN_CLS here: the tasks are causal_lm, seq2seq_lm, seq_cls."),
        (
            "lora_target_linear",
            False,
            "Leave it out, and name the modules in lora.target_modules, which is all-linear where nothing is said.",
        ),
        ("apply_lora_to_mlp", False, "Write lora.target_modules: attention, which leaves the MLP out."),
        ("lora_bias", "all", "Write lora.bias: all."),
        ("init_lora_weights", "pissa", "Write lora.init: pissa."),
        (
            "init_lora_weights",
            "corda",
            "There is no corda here: lora.init is default, gaussian, pissa, olora, loftq or eva.",
        ),
        ("init_lora_weights", True, "Write lora.init: default."),
        ("dataset", "a.jsonl,b.jsonl", "Write data.train: [a.jsonl, b.jsonl]."),
        ("dataset", "a.jsonl", "Write data.train: a.jsonl."),
        ("datasets", [{"path": "a"}, {"path": "b", "type": "alpaca"}], "Write data.train: [a, b]."),
        ("do_eval", False, "Write data.eval: null."),
        ("use_wandb", False, "Leave it out: training.report_to: [] reports to nobody."),
        ("do_sample", False, "Write generation.temperature: 0."),
        ("peft_config", {"r": 8}, "Write its keys in the section lora."),
    ],
)
def test_what_other_tools_call_it(key: str, value: Value, advice: str) -> None:
    assert advice_for_key((key,), value) == advice


def test_an_axolotl_file_is_answered_key_by_key(tmp_path: Path) -> None:
    text = "base_model: a/b\nadapter: qlora\nmicro_batch_size: 2\ngradient_accumulation_steps: 4\nlora_r: 32\n"
    text += "datasets:\n  - path: rows.jsonl\n    type: alpaca\n"
    remedies = [
        problem.remedy for problem in problems(write(tmp_path, text)) if problem.message.startswith("is no key")
    ]
    assert remedies == [
        "Write model.name_or_path: a/b.",
        "Write method: qlora.",
        "Write training.per_device_train_batch_size: 2.",
        "It belongs to another level: write training.gradient_accumulation_steps.",
        "Write lora.r: 32.",
        "Write data.train: rows.jsonl.",
    ]


def test_what_another_tools_key_says_is_not_missing(tmp_path: Path) -> None:
    axolotl = "base_model: a/b\ndatasets: [{path: rows.jsonl, type: alpaca}]\n"
    assert [problem.key for problem in problems(write(tmp_path, axolotl))] == ["base_model", "datasets"]
    assert [problem.key for problem in problems(write(tmp_path, "base_model: a/b\nmodel: {dtype: auto}\n"))] == [
        "data",
        "base_model",
    ]


def test_a_value_that_is_only_near_is_told_with_the_difference(tmp_path: Path) -> None:
    ours = "model: {name_or_path: a/b}\ndata: {train: x.jsonl}\ntraining: {lr_scheduler_type: cosine_with_restarts}\n"
    (problem,) = problems(write(tmp_path, ours))
    assert problem.remedy == (
        "There is no cosine_with_restarts here: cosine at the nearest, and it falls once and does not restart."
    )


def test_a_foreign_word_counts_only_where_ours_is_allowed() -> None:
    assert answer_to_value("bf16", ("auto", "bfloat16")) == "bfloat16"
    assert answer_to_value("bf16", ("lora", "qlora")) is None

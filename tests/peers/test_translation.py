"""Keys of other tools become ours, with the same meaning, or are named with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraft.config.config_file import load_config
from loraft.config.yaml_nodes import Value
from loraft.errors import ConfigError
from loraft.peers.translation import ours_of
from tests.peers.translating import STARTS, become, imported
from tests.words import Wording

TRANSLATED: list[tuple[str, str, dict[str, Any]]] = [
    ("axolotl", "adapter: qlora\nload_in_4bit: true", {"method": "qlora"}),
    ("axolotl", "adapter: lora\nload_in_4bit: true", {"method": "qlora"}),
    ("axolotl", "adapter: lora\nload_in_8bit: true", {"method": "qlora", "quantization.type": "int8"}),
    ("axolotl", "adapter: lora\nload_in_8bit: false", {"method": "lora"}),
    ("axolotl", "adapter:", {"method": "full"}),
    ("axolotl", "adapter: qlora\nload_in_8bit: true\nload_in_4bit: true", {"method": "qlora"}),
    ("llama-factory", "quantization_bit: 4\ndouble_quantization: false", {"method": "qlora"}),
    ("llama-factory", "quantization_bit: 8", {"method": "qlora", "quantization.type": "int8"}),
    ("llama-factory", "lora_rank: 4", {"lora.r": 4, "lora.alpha": 8}),
    ("llama-factory", "lora_rank: 4\nlora_alpha: 5", {"lora.alpha": 5}),
    ("llama-factory", "", {"lora.r": 8, "lora.alpha": 16, "data.eval": None, "training.warmup_steps": 0}),
    ("trl", "load_in_4bit: true", {"method": "qlora", "quantization.double_quant": False}),
    ("trl", "load_in_4bit: true\nuse_bnb_nested_quant: true", {"quantization.double_quant": True}),
    ("trl", "", {"lora.dropout": 0.05, "data.max_length": 1024, "training.learning_rate": 2e-5, "seed": 42}),
    ("trl", "", {"lora.target_modules": "all-linear", "data.on_overlength": "truncate"}),
    ("llama-factory", "", {"data.on_overlength": "truncate"}),
    ("axolotl", "", {"data.on_overlength": "not written"}),
    ("axolotl", "excess_length_strategy: raise", {"data.on_overlength": "error"}),
    ("axolotl", "excess_length_strategy: truncate", {"data.on_overlength": "truncate"}),
    ("trl", "truncation_mode: keep_end", {"data.on_overlength": "truncate"}),
    ("axolotl", "", {"training.num_train_epochs": 1, "training.per_device_train_batch_size": 1, "seed": 42}),
    ("axolotl", "adapter: lora\nlora_target_linear: true", {"lora.target_modules": "all-linear"}),
    ("axolotl", "adapter: lora\nlora_target_modules: [q_proj]", {"lora.target_modules": ["q_proj"]}),
    (
        "axolotl",
        "adapter: lora\nlora_target_modules: 'model.layers.[\\d]+.(mlp|self_attn).(up|down)_proj'",
        {"lora.target_modules": ["up_proj", "down_proj"]},
    ),
    ("trl", "lora_target_modules: [all-linear]", {"lora.target_modules": "all-linear"}),
    ("llama-factory", "lora_target: q_proj, v_proj", {"lora.target_modules": ["q_proj", "v_proj"]}),
    ("axolotl", "micro_batch_size: 2\nbatch_size: 8", {"training.gradient_accumulation_steps": 4}),
    ("axolotl", "num_epochs: 2\nevals_per_epoch: 4", {"training.eval_steps": 0.125}),
    ("axolotl", "num_epochs: 3\nsaves_per_epoch: 1", {"training.save_steps": None}),
    ("axolotl", "lr_scheduler: constant", {"training.warmup_steps": 0}),
    ("llama-factory", "lr_scheduler_type: constant\nwarmup_ratio: 0.1", {"training.warmup_steps": 0}),
    ("trl", "lr_scheduler_type: constant_with_warmup\nwarmup_steps: 5", {"training.warmup_steps": 5}),
    ("axolotl", "warmup_ratio: 0.1", {"training.warmup_steps": 0.1}),
    ("axolotl", "warmup_ratio: 0.1\nwarmup_steps: 10", {"training.warmup_steps": 10}),
    ("axolotl", "val_set_size: 0.1", {"data.eval": 0.1}),
    ("axolotl", "val_set_size: 0", {"data.eval": None}),
    ("axolotl", "val_set_size: 200", {"data.eval": 0.05}),
    ("axolotl", "sample_packing: true", {"data.packing": "fill"}),
    ("axolotl", "train_on_inputs: true", {"data.train_on": "all"}),
    ("axolotl", "bf16: true\nfp16:", {"model.dtype": "bfloat16"}),
    ("axolotl", "bf16: false\nfp16: true", {"model.dtype": "float16"}),
    ("axolotl", "bf16: false\nfp16: false", {"model.dtype": "float32"}),
    ("axolotl", "shuffle_merged_datasets: false\nstreaming: true\nmax_steps: 1", {"data.shuffle": False}),
    ("trl", "bf16: false", {"model.dtype": "float32"}),
    ("trl", "bf16: false\ndtype: bfloat16", {"model.dtype": "bfloat16"}),
    ("llama-factory", "bf16: false", {"model.dtype": "not written"}),
    ("axolotl", "optimizer: adamw_bnb_8bit", {"training.optim": "adamw_8bit"}),
    ("axolotl", "optimizer: adamw_torch_4bit", {"training.optim": "adamw_8bit"}),
    (
        "axolotl",
        "lr_scheduler: cosine\ncosine_min_lr_ratio: 0.1",
        {"training.lr_scheduler_type": "cosine_with_min_lr", "training.lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    ),
    ("axolotl", "max_steps: -1\nmax_grad_norm: 0", {"training.max_grad_norm": None}),
    ("axolotl", "wandb_project: p", {"training.project": "p", "training.report_to": ["wandb"]}),
    ("axolotl", "comet_project_name: p", {"training.project": "p", "training.report_to": ["comet_ml"]}),
    ("axolotl", "mlflow_tracking_uri: u\nmlflow_experiment_name: e", {"training.report_to": ["mlflow"]}),
    ("axolotl", "mlflow_tracking_uri: u", {"training.report_to": "not written"}),
    ("trl", "report_to: none", {"training.report_to": []}),
    ("trl", "report_to: [wandb, tensorboard]", {"training.report_to": ["wandb", "tensorboard"]}),
    ("trl", "packing: true", {"data.packing": "fill"}),
    ("trl", "eval_strategy: steps", {"data.eval": {"path": "c/d", "split": "test"}}),
    ("llama-factory", "packing: true\nval_size: 0.2", {"data.packing": "fill", "data.eval": 0.2}),
    ("axolotl", "chat_template: llama3", {"data.chat_template": "auto"}),
    ("axolotl", "chat_template: chatml", {"data.chat_template": "chatml"}),
    ("axolotl", "learning_rate: '2e-4'\nmicro_batch_size: 4.0", {"training.learning_rate": 2e-4}),
    ("axolotl", "gradient_accumulation_steps: 3.0", {"training.gradient_accumulation_steps": 3}),
    ("trl", "load_in_8bit: true\nbnb_4bit_quant_type: nf4", {"quantization.type": "int8"}),
    ("llama-factory", "quantization_bit: 8\nquantization_type: fp4", {"quantization.type": "int8"}),
    (
        "llama-factory",
        "additional_target: embed_tokens, lm_head",
        {"lora.modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    ("llama-factory", "new_special_tokens: '<a>,<b>'", {"model.add_tokens": ["<a>", "<b>"]}),
    ("axolotl", "adapter: lora\nlora_target_parameters: mlp.up", {"lora.target_parameters": ["mlp.up"]}),
    (
        "axolotl",
        "adapter: qlora\nload_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_use_double_quant: false, other: 1}",
        {"quantization.double_quant": False},
    ),
    ("llama-factory", "lora_rank: .inf", {"lora.r": "not written", "lora.alpha": 16}),
    ("trl", "push_to_hub: true\nhub_model_id: me/x", {"training.push_to_hub": "me/x"}),
    ("axolotl", "hub_model_id: me/x", {"training.push_to_hub": "me/x"}),
    ("axolotl", "adapter: lora\nlora_target_linear: true", {"lora.experts": False}),
    ("llama-factory", "lora_target: all", {"lora.experts": False}),
    ("axolotl", "adapter: lora\nlora_target_modules: [q_proj]", {"lora.experts": "not written"}),
    ("axolotl", "micro_batch_size: 2\nval_set_size: 0.1", {"training.per_device_eval_batch_size": 2}),
    ("axolotl", "val_set_size: 0.1\neval_batch_size: 4", {"training.per_device_eval_batch_size": 4}),
    ("axolotl", "micro_batch_size: 2\nval_set_size: 0", {"training.per_device_eval_batch_size": "not written"}),
    ("axolotl", "model_config: {output_router_logits: true}", {"training.router_aux_loss_coef": "auto"}),
    (
        "axolotl",
        "model_config: {output_router_logits: true, router_aux_loss_coef: 0.02}",
        {"training.router_aux_loss_coef": 0.02},
    ),
    (
        "axolotl",
        "fsdp_version: 2\nfsdp_config: {offload_params: true, reshard_after_forward: false}",
        {"distributed.strategy": "fsdp2", "distributed.reshard": False, "distributed.cpu_offload": True},
    ),
    (
        "axolotl",
        "fsdp: [full_shard]\nfsdp_config: {fsdp_sharding_strategy: FULL_SHARD, fsdp_activation_checkpointing: true}",
        {
            "distributed.strategy": "fsdp2",
            "distributed.reshard": "not written",
            "training.gradient_checkpointing": True,
        },
    ),
    ("llama-factory", "fsdp: hybrid_shard auto_wrap offload", {"distributed.hybrid_shard": True}),
    ("axolotl", "lora_r: 1_0\ntrust_remote_code: yes", {}),
    ("axolotl", "adapter: qlora\nload_in_4bit: true", {"quantization.experts": False}),
    ("axolotl", "adapter: qlora\nload_in_4bit: true\nquantize_moe_experts: true", {"quantization.experts": True}),
    ("axolotl", "adapter: lora\nload_in_8bit: true", {"quantization.experts": "not written"}),
    ("axolotl", "", {"training.save_steps": "not written", "training.warmup_steps": 0.03}),
    ("axolotl", "max_steps: 1000", {"training.warmup_steps": 30}),
    ("axolotl", "max_steps: 9000", {"training.warmup_steps": 100}),
    ("axolotl", "save_strategy: 'no'", {"training.save_steps": None}),
    ("axolotl", "save_strategy: 'no'\nsaves_per_epoch: 4", {"training.save_steps": None}),
    ("trl", "save_strategy: 'no'\nsave_steps: 7", {"training.save_steps": None}),
    ("llama-factory", "save_steps: 7\nsave_strategy: best", {"training.save_steps": None}),
    ("trl", "save_strategy: steps\nsave_steps: 7", {"training.save_steps": 7}),
    ("llama-factory", "", {"training.save_steps": 500}),
    ("trl", "save_strategy: steps", {"training.save_steps": 500}),
    ("trl", "save_strategy: epoch", {"training.save_steps": None}),
    ("trl", "save_strategy: epoch\nsave_steps: 100", {"training.save_steps": None}),
    ("trl", "save_steps: 100", {"training.save_steps": 100}),
    ("trl", "eval_strategy: steps", {"training.eval_steps": 10}),
    ("trl", "eval_strategy: 'no'\neval_steps: 7", {"training.eval_steps": "not written"}),
    ("llama-factory", "eval_strategy: steps\nlogging_steps: 20", {"training.eval_steps": 20}),
    ("trl", "max_length: null", {"data.on_overlength": "error", "data.max_length": "not written"}),
    ("axolotl", "device_map: {'': 0}", {"model.device": "not written"}),
    ("axolotl", "adapter: lora\nunfrozen_parameters: [lm_head]", {"method": "lora"}),
    ("axolotl", "unfrozen_parameters: ['^model.language_model.*', lm_head]", {"method": "full"}),
    ("axolotl", "reinit_weights: false", {"method": "full"}),
]


@pytest.mark.parametrize(("peer", "text", "ours"), TRANSLATED)
def test_a_key_means_the_same_here(tmp_path: Path, peer: str, text: str, ours: dict[str, Value]) -> None:
    found = become(tmp_path, peer, text)
    assert {key: found.get(key, "not written") for key in ours} == ours


@pytest.mark.parametrize(
    ("peer", "texts", "ours"),
    [
        (
            "axolotl",
            ["cosine_min_lr_ratio: 0.1", "lr_scheduler: cosine"],
            {"training.lr_scheduler_type": "cosine_with_min_lr", "training.lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        ),
        (
            "axolotl",
            ["activation_offloading: true", "gradient_checkpointing: true"],
            {"training.gradient_checkpointing": "offload"},
        ),
        ("axolotl", ["curriculum_sampling: true", "shuffle_merged_datasets: true"], {"data.shuffle": False}),
        ("axolotl", ["sdp_attention: true", "flash_attention: false"], {"model.attn_implementation": "sdpa"}),
        ("llama-factory", ["mask_history: true", "train_on_prompt: false"], {"data.train_on": "last"}),
        ("llama-factory", ["use_muon: true", "optim: adamw_torch"], {"training.optim": "muon"}),
    ],
)
def test_of_two_keys_for_one_of_ours_the_same_counts_in_either_order(
    tmp_path: Path, peer: str, texts: list[str], ours: dict[str, Value]
) -> None:
    first, second = [imported(tmp_path, STARTS[peer] + "\n".join(order) + "\n") for order in (texts, texts[::-1])]
    assert first.config == second.config
    said = {key: value for row in first.rows for key, value in row.becomes.items()}
    assert {key: said[key] for key in ours} == ours
    assert len([row for row in first.rows if row.key and not ours.keys().isdisjoint(row.becomes)]) == 1


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        ("llama-factory", STARTS["llama-factory"].replace("lora", "full")),
        ("trl", STARTS["trl"].replace("true", "false")),
    ],
)
def test_what_a_tool_does_of_itself_is_written_where_every_weight_is_trained(
    tmp_path: Path, peer: str, text: str
) -> None:
    """The rank and the dropout of an adapter are among these numbers, and have nothing to do there."""
    config = imported(tmp_path, text).config
    assert (config.method, config.seed) == ("full", 42)
    rates = {"llama-factory": 5e-5, "trl": 2e-5}
    assert (config.training.learning_rate, config.training.lr_scheduler_type) == (rates[peer], "linear")
    assert config.training.warmup_steps == 0
    assert config.training.save_steps == 500


def test_what_a_tool_does_of_itself_stands_behind_what_its_file_says(tmp_path: Path) -> None:
    text = STARTS["axolotl"].replace("chat_template", "alpaca") + "chat_template_jinja: own.jinja\n"
    done = imported(tmp_path, text)
    assert done.config.data.chat_template == "own.jinja"
    assert [row.key for row in done.rows if "data.chat_template" in row.becomes] == ["chat_template_jinja"]


@pytest.mark.parametrize(
    ("peer", "text", "key"),
    [
        ("axolotl", "max_steps: -1", "training.max_steps"),
        ("axolotl", "adapter:\nlora_r: 8", "lora.r"),
        ("axolotl", "adapter: lora\nbnb_4bit_quant_type: nf4", "quantization.type"),
        ("trl", "eval_strategy: 'no'\neval_steps: null", "training.eval_steps"),
        ("axolotl", "eval_steps: null", "training.eval_steps"),
        ("trl", "chat_template: '{% for message in messages %}{% endfor %}'", "data.chat_template"),
        ("axolotl", "chat_template: jinja\nchat_template_jinja: '{{ a }}'", "data.chat_template"),
        ("trl", "hub_model_id: me/x", "training.push_to_hub"),
        ("trl", "shuffle_dataset: false", "data.shuffle"),
        ("axolotl", "shuffle_merged_datasets: false", "data.shuffle"),
        ("llama-factory", "hub_model_id: me/x\npush_to_hub: false", "training.push_to_hub"),
        ("trl", "push_to_hub: true", "training.push_to_hub"),
        ("axolotl", "model_config: {rope_theta: 1, output_router_logits: false}", "training.router_aux_loss_coef"),
    ],
)
def test_what_says_nothing_is_not_written(tmp_path: Path, peer: str, text: str, key: str) -> None:
    assert key not in become(tmp_path, peer, text)


def test_what_the_schema_refuses_is_the_reason_and_its_default_stands(tmp_path: Path, wording: Wording) -> None:
    text = "sample_packing: true\nsample_packing_sequentially: true\ncurriculum_sampling: true\nlora_dropout: 1.5\n"
    done = imported(tmp_path, STARTS["axolotl"] + "adapter: lora\n" + text)
    assert (done.config.data.packing, done.config.data.shuffle, done.config.lora.dropout) == ("auto", False, 0)
    wording("\n".join(f"{row.key}: {row.why}" for row in done.rows if row.why))


@pytest.mark.parametrize(
    ("peer", "text", "key"),
    [
        ("axolotl", "rl: grpo", "rl"),
        ("axolotl", "reward_model: true", "reward_model"),
        ("axolotl", "adapter: ia3", "adapter"),
        ("llama-factory", "model_name_or_path: a/b\ndataset: rows\nstage: ppo", "stage"),
        ("llama-factory", "model_name_or_path: a/b\ndataset: rows\nfinetuning_type: oft", "finetuning_type"),
        ("llama-factory", "model_name_or_path: a/b\ntemplate: x\ninfer_backend: huggingface", "infer_backend"),
        ("axolotl", "base_model: a/b\nsequence_len: 8\ndatasets: [{type: alpaca}]", "datasets"),
        ("axolotl", "sequence_len: 8\ndatasets: [x]", None),
        ("axolotl", "base_model: a/b\nsequence_len: 8", None),
        ("axolotl", "base_model: a/b\nsequence_len: 8\nrl: grpo", "rl"),
        ("llama-factory", "model_name_or_path: a/b\ntemplate: x\neval_dataset: rows\ndo_predict: true", "do_predict"),
        ("llama-factory", "model: a/model_name\ntemplate: x\ncutoff_len: 8\ntrain_dataset: rows.yaml", "model"),
        ("trl", "model_name: a/b\nload_in_4bit: true\nmax_seq_length: 8\ndataset: c/d", "model_name"),
        ("axolotl", "unfrozen_parameters: ['model.layers.2[0-9]+.mlp']", "unfrozen_parameters"),
        ("axolotl", "lisa_n_layers: 4\nlisa_step_interval: 20", "lisa_n_layers"),
        ("axolotl", "reinit_weights: true", "reinit_weights"),
    ],
)
def test_what_is_no_training_of_ours_is_refused_at_its_place(
    tmp_path: Path, peer: str, text: str, key: str | None, wording: Wording
) -> None:
    whole = text if "base_model:" in text or "model_name" in text or key is None else STARTS[peer] + text
    with pytest.raises(ConfigError) as refused:
        imported(tmp_path, whole)
    (problem,) = refused.value.problems
    assert problem.key == key
    wording(str(problem))


def test_a_secret_is_neither_told_nor_written(tmp_path: Path) -> None:
    done = imported(tmp_path, STARTS["trl"] + "hub_token: hf_secret\nwandb_api_key: abc_secret\n")
    assert "secret" not in done.text.replace("holds no secret", "")
    assert all("secret" not in str(row.value) for row in done.rows)


def test_a_value_that_holds_a_secret_is_not_written(tmp_path: Path) -> None:
    token = f"hf_{'a' * 30}"
    done = imported(tmp_path, f"{STARTS['trl']}output_dir: runs/{token}\n")
    assert token not in done.text
    assert "training.output_dir holds a token of Hugging Face" in done.text
    assert done.config.training.output_dir is None


@pytest.mark.parametrize("key", ["strange_key", "dataset_test_split", "report_to", "per_device_train_batch_size"])
def test_a_secret_is_left_out_of_what_became_of_a_key(tmp_path: Path, key: str) -> None:
    """`loraft import --json` prints the rows."""
    token = f"hf_{'a' * 30}"
    done = imported(tmp_path, f"{STARTS['trl']}{key}: [{token}]\n")
    assert token not in f"{done.rows}{done.text}"
    assert "[a token of Hugging Face]" in done.text


def test_a_secret_that_its_key_tells_is_left_out(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    keys = f"env: {{WANDB_API_KEY: {key}, CUDA_HOME: /cuda}}\nwandb_key: {key}\n"
    done = imported(tmp_path, STARTS["axolotl"] + keys)
    assert key not in f"{done.rows}{done.text}"
    (row,) = [row for row in done.rows if row.key == "env"]
    assert row.value == {"WANDB_API_KEY": "[a key of Weights & Biases]", "CUDA_HOME": "/cuda"}


def test_a_secret_is_left_out_of_a_refusal(tmp_path: Path) -> None:
    token = f"hf_{'a' * 30}"
    with pytest.raises(ConfigError, match=r"there is no x/\[a token of Hugging Face\] here"):
        imported(tmp_path, f"{STARTS['axolotl']}adapter: x/{token}\n")


def test_what_is_written_is_the_config_and_says_what_each_key_was(tmp_path: Path) -> None:
    done = imported(tmp_path, STARTS["axolotl"] + "adapter: lora\nlora_r: 8\noptimizer: adamw_torch_4bit\ntf32: true\n")
    path = tmp_path / "ours.yaml"
    path.write_text(done.text)
    assert load_config(path) == done.config
    lines = done.text.splitlines()
    assert lines[lines.index("  optim: adamw_8bit") - 1].lstrip().startswith("# optimizer: adamw_torch_4bit; ")
    assert any(line.startswith("#   tf32: true — ") for line in lines)
    assert max(map(len, lines)) <= 100


def test_a_strategy_whose_steps_are_named_needs_no_advice(tmp_path: Path) -> None:
    done = imported(tmp_path, STARTS["axolotl"] + "adapter: lora\neval_strategy: steps\neval_steps: 50\n")
    assert done.config.training.eval_steps == 50
    assert [row.why for row in done.rows if row.key == "eval_strategy"] == ["training.eval_steps says so"]


def test_a_plugin_that_changes_the_training_is_named(tmp_path: Path) -> None:
    plugins = "axolotl.integrations.liger.LigerPlugin, axolotl.integrations.kd.KDPlugin"
    done = imported(tmp_path, f"{STARTS['axolotl']}plugins: [{plugins}]\n")
    assert [row.key for row in done.rows if row.key.startswith("plugins")] == ["plugins", "plugins[1]"]


def test_a_key_that_nobody_knows_is_told(tmp_path: Path) -> None:
    done = imported(tmp_path, STARTS["axolotl"] + "frobnicate: 3\n")
    assert [row.key for row in done.rows if not row.known] == ["frobnicate"]


def test_of_a_pattern_that_is_not_read_it_is_not_told_that_there_is_none(tmp_path: Path) -> None:
    done = imported(tmp_path, STARTS["trl"] + "lora_target_modules: 'layers\\.(?!0).*'\n")
    assert done.config.lora.target_modules == "all-linear"
    assert [row.key for row in done.rows if "lora.target_modules" in row.becomes] == []


def test_a_word_that_is_only_near_says_in_what_it_differs() -> None:
    assert ours_of("lion_32bit", ("lion_8bit",)) == ("lion_8bit", "the nearest: its state is in 8 bits")
    assert ours_of("adamw_torch", ("adamw",)) == ("adamw", "")
    assert ours_of(3, ("adamw",)) == (3, "")

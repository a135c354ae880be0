"""C33: whatever has changed since a run was begun is refused and named, or it is named and changes no byte of the end.

Every key of the schema is tried. A new one needs its line in `CHANGED`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loraft.config.config_file import dump_config, load_config
from loraft.config.schema_info import KEYS
from loraft.training.resume import LENGTH, SILENT
from tests.cli.running import Done, loraft
from tests.faults.cells import RESUME, Cell, contents
from tests.faults.conftest import Trial
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.building import ROWS_OF, pairs, write_rows

Begun = Callable[[str], Path]
KINDS = {
    "lora": Cell("lora", "causal_lm", 1, False),
    "template": Cell("lora", "causal_lm", 1, False),
    "frozen": Cell("lora", "causal_lm", 1, False),
    "qlora": Cell("qlora", "causal_lm", 1, False),
    "stream": Cell("lora", "causal_lm", 1, True),
    "pairs": Cell("lora", "seq2seq_lm", 1, False),
    "classes": Cell("lora", "seq_cls", 1, False),
    "preferences": Cell("lora", "preference", 1, False),
}
WITH: Mapping[str, tuple[str, ...]] = {
    "template": ("data.chat_template=own.jinja",),
    "frozen": ("data.shuffle=batches", "lora.layers=last:1"),
}
"""What runs of a kind are begun and gone on with besides."""
LORA = {
    "task": "seq2seq_lm", "method": "full", "seed": "1",
    "model.name_or_path": "elsewhere", "model.dtype": "bfloat16",
    "model.attn_implementation": "eager", "model.tokenizer": "elsewhere", "model.add_tokens": "[<call>]",
    "model.stream_layers": "true",
    "lora.r": "8", "lora.alpha": "16", "lora.dropout": "0.2", "lora.target_modules": "attention",
    "lora.layers": "last:1", "lora.modules_to_save": "[lm_head]", "lora.use_rslora": "true", "lora.use_dora": "true",
    "lora.rank_pattern": "{q_proj: 2}", "lora.alpha_pattern": "{q_proj: 2}", "lora.plus_ratio": "4",
    "lora.init": "gaussian",
    "lora.experts": "false", "lora.start_from": "whole/adapter",
    "data.train": "other.jsonl", "data.eval": "rows.jsonl", "data.columns": "{messages: messages}",
    "data.split": "train", "data.name": "default", "data.limit": "11", "data.format": "messages",
    "data.text_by": "line", "data.chat_template": "alpaca", "data.max_length": "128", "data.on_overlength": "truncate",
    "data.on_bad_row": "skip", "data.train_on": "last", "data.split_turns": "true",
    "data.special_tokens_in_text": "keep", "data.shuffle": "false", "data.streaming": "true", "data.num_proc": "1",
    "data.packing": "off", "data.shared_prefix": "off",
    "training.output_dir": "./run", "training.num_train_epochs": "2", "training.max_steps": "6",
    "training.per_device_train_batch_size": "3", "training.per_device_eval_batch_size": "2",
    "training.gradient_accumulation_steps": "2", "training.learning_rate": "0.02",
    "training.lr_scheduler_type": "constant", "training.lr_scheduler_kwargs": "{min_lr_rate: 0.1}",
    "training.warmup_steps": "2", "training.weight_decay": "0.1", "training.max_grad_norm": "0.5",
    "training.adam_beta1": "0.8", "training.adam_beta2": "0.99", "training.group_by_length": "true",
    "training.optim": "adafactor", "training.label_smoothing_factor": "0.1",
    "training.neftune_noise_alpha": "5", "training.on_nonfinite": "skip", "training.gradient_checkpointing": "true",
    "training.try_longest_batch": "true", "training.kernels": "plain", "training.tiled_mlp": "true",
    "training.logging_steps": "2", "training.eval_steps": "2", "training.save_steps": "1",
    "training.save_total_limit": "1", "training.early_stopping_patience": "9", "training.sample_prompts": "[so]",
    "training.report_to": "[tensorboard]", "training.project": "p", "training.run_name": "n",
    "generation.max_new_tokens": "2", "generation.temperature": "0.5",
    "distributed.timeout_seconds": "60", "distributed.strategy": "ddp", "distributed.reshard": "false",
    "distributed.cpu_offload": "true", "distributed.hybrid_shard": "true",
}  # fmt: skip
"""Keys of every run, each with another value than that of `Cell.config`."""
OF_OTHERS = {
    "frozen": {"training.cache_frozen_prefix": "true"},
    "qlora": {
        "quantization.type": "fp4", "quantization.double_quant": "false", "quantization.experts": "false",
        "quantization.compute_dtype": "bfloat16",
    },
    "stream": {"data.shuffle_buffer": "3"},
    "pairs": {
        "data.source_prefix": "so", "data.source_lang": "en", "data.target_lang": "de", "data.max_target_length": "99",
    },
    "classes": {
        "data.labels": "[late, text, order]", "training.metric_for_best_model": "accuracy",
        "training.class_weights": "balanced",
    },
    "preferences": {
        "preference.loss": "ipo", "preference.beta": "0.2", "preference.gamma": "0.4",
        "preference.label_smoothing": "0.1", "preference.sft_weight": "0.5",
        "preference.desirable_weight": "2", "preference.undesirable_weight": "2",
    },
}  # fmt: skip
CHANGED: Mapping[str, tuple[str, str]] = {key: ("lora", value) for key, value in LORA.items()} | {
    key: (kind, value) for kind, keys in OF_OTHERS.items() for key, value in keys.items()
}
BESIDE: Mapping[str, tuple[str, ...]] = {
    "task": ("model.name_or_path=t5", "data.train=pairs.jsonl", "data.eval=pairs.jsonl"),
    "lora.target_parameters": ("lora.dropout=0",),
    "training.lr_scheduler_kwargs": ("training.lr_scheduler_type=cosine_with_min_lr",),
}
"""What a value needs to be allowed."""
WAS = {
    "model.revision": "main", "lora.bias": "all", "lora.target_parameters": "[mlp.up_proj.weight]",
    "training.router_aux_loss_coef": "0.1",
    "training.push_to_hub": "nobody/nothing",
}  # fmt: skip
"""Keys that no tiny model in a folder can have otherwise: the run is said to have been begun with these values."""


def test_every_key_of_the_schema_is_tried() -> None:
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    assert {*CHANGED, *WAS} == {*KEYS} - sections


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """A folder with `whole`, a run of a kind, and `stopped`, the same run as a kill after its fourth step leaves it."""

    @cache
    def of(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        KINDS[kind].write(folder)
        (folder / "c.yaml").write_text(KINDS[kind].config.replace("max_steps: 7", "max_steps: 5"))
        shutil.copytree(folder / "model", folder / "elsewhere")
        save_tiny(folder / "t5", "t5")
        write_rows(folder / "pairs.jsonl", pairs(12))
        write_rows(folder / "other.jsonl", ROWS_OF[KINDS[kind].task](13)[1:])
        (folder / "own.jinja").write_text(tiny_tokenizer().chat_template)
        done = loraft("train", "c.yaml", *WITH.get(kind, ()), cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / "run").rename(folder / "whole")
        shutil.copytree(folder / "whole", folder / "stopped", ignore=shutil.ignore_patterns("step-000005"))
        return folder

    return of


def stopped(folder: Path) -> Path:
    """The run of a folder, as the kill has left it."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    return shutil.copytree(folder / "stopped", folder / "run")


def is_refused(done: Done, run: Path, before: dict[str, object], named: str) -> None:
    """It is told by its name, with the way to go on, and all in the run's folder is as it was before."""
    assert done.returncode == 2, done.stderr
    assert re.search(f"since the run was begun, {named}", done.stderr), done.stderr
    assert "--resume-anyway" in done.stderr
    assert contents(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("key", [*CHANGED, *WAS])
def test_c33_a_key_that_has_changed_is_refused_or_changes_no_byte(
    begun: Begun, key: str, trial: Trial, torture: bool
) -> None:
    kind, value = CHANGED.get(key, ("lora", ""))
    folder = begun(kind)
    run, words = stopped(folder), [*RESUME, *WITH.get(kind, ())]
    if key in WAS:
        was = load_config(run / "config.yaml", [f"{key}={WAS[key]}", *BESIDE.get(key, ())])
        (run / "config.yaml").write_text(dump_config(was))
    else:
        words += [f"{key}={value}", *BESIDE.get(key, ())]
    before = contents(run)
    with trial("a key of the config has changed: refused and named, or named and no byte changes"):
        done = loraft(*words, cwd=folder)
        if done.returncode == 0:
            assert f"{key} was " in done.stderr or key == SILENT
            if key in LENGTH:
                return
            for file in ("adapter/adapter_model.safetensors", "checkpoints/step-000005/optimizer.safetensors"):
                assert (run / file).read_bytes() == (folder / "whole" / file).read_bytes()
        else:
            is_refused(done, run, before, rf"{re.escape(key)}[.\w]* was ")
    if torture and done.returncode:
        with trial("`--resume-anyway`: goes on with the change, or tells why no checkpoint can"):
            anyway = loraft(*words, "--resume-anyway", cwd=folder)
            assert anyway.returncode == 0 or "has not what is trained now" in anyway.stderr, anyway.stderr


def other_rows(path: Path) -> None:
    path.write_text(path.read_text().replace("the order", "an order", 1))


def another_template(path: Path) -> None:
    path.write_text(path.read_text().replace("user", "person").replace("<|im_start|>", "<|im_start|> "))


def other_weights(path: Path) -> None:
    tensors = load_file(path)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] * 1.001}, path, {"format": "pt"})


def another_tokenizer(path: Path) -> None:
    told = json.loads(path.read_text())
    told["model"]["merges"] = told["model"]["merges"][:-1]
    path.write_text(json.dumps(told))


def another_shape(path: Path) -> None:
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"rms_norm_eps": 0.1}))


FILES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "rows.jsonl": (other_rows, "the rows are not the same"),
    "eval.jsonl": (other_rows, "the rows are not the same"),
    "own.jinja": (another_template, "the rows are not the same"),
    "model/tokenizer.json": (another_tokenizer, "the rows are not the same"),
    "model/model.safetensors": (other_weights, "the base's weights are not the same"),
    "model/config.json": (another_shape, "the config.json of the base is not the same"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_c33_a_file_that_has_changed_under_its_name_is_refused(begun: Begun, name: str, trial: Trial) -> None:
    folder = begun("template")
    run, words = stopped(folder), (*RESUME, *WITH["template"])
    change, named = FILES[name]
    content, before = (folder / name).read_bytes(), contents(run)
    change(folder / name)
    try:
        with trial("rows, template, tokenizer or base have changed under their names: refused and named"):
            is_refused(loraft(*words, cwd=folder), run, before, named)
    finally:
        (folder / name).write_bytes(content)
    assert loraft(*words, cwd=folder).returncode == 0

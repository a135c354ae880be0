"""Models whose files are quantized already, and `quantization.type: int8`, from a config to a merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.running import loraft, refused
from tests.stored import SIZES, declare, save_stored
from tests.tiny import save_tiny
from tests.words import Wording

WORDS = ("the", "customer", "said", "that", "order", "is", "late", "and", "answer")
TEXTS = [" ".join(WORDS[(start + step) % len(WORDS)] for step in range(2 + start % 4)) for start in range(12)]
KINDS = ("nf4", "fp4", "int8", "fp8", "gptq", "gptq v2", "awq", "mxfp4", "compressed-tensors")
WORDS_FOR = {"fp8": "float8_e4m3fn", "compressed-tensors": "int4", "gptq": "int4", "gptq v2": "int2", "awq": "int4"}


def place(folder: Path, kind: str, *, dtype: str = "float32", **sizes: Any) -> Path:
    """A folder with rows, a config, and a tiny model in `kind`; `plain` is an unquantized one."""
    if kind == "plain":
        save_tiny(folder / "model", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    else:
        save_stored(folder / "model", kind, **sizes)
    rows = [{"prompt": text, "completion": " ".join(reversed(text.split()))} for text in TEXTS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "c.yaml").write_text(
        f"model: {{name_or_path: model, dtype: {dtype}}}\n"
        "lora: {r: 4}\n"
        "data: {train: train.jsonl, eval: null, max_length: 64}\n"
        "training: {output_dir: run, max_steps: 4, save_steps: 2, learning_rate: 0.01, logging_steps: 1}\n"
    )
    return folder


def answer(folder: Path, *words: str) -> Any:
    """What a command answers as JSON."""
    done = loraft(*words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_from_a_quantized_folder_to_a_merged_model(tmp_path: Path, kind: str, dtype: str) -> None:
    folder = place(tmp_path, kind, dtype=dtype)
    told = answer(folder, "check", "c.yaml")
    assert told["model"]["stored"].startswith(kind.partition(" ")[0])
    trained = answer(folder, "train", "c.yaml")
    assert trained["steps"] == 4
    assert losses(folder)[-1] < losses(folder)[0]
    asked = ("--prompt", "the customer said", "--max-new-tokens", "8", "--temperature", "0", "--dtype", dtype)
    adapted = answer(folder, "generate", "run", *asked)
    report = answer(folder, "merge", "run", "merged", "--dtype", dtype)
    assert report["base"] == "dequantized"
    assert report["kl_adapted_merged"] <= (1e-8 if dtype == "float32" else 1e-2)
    assert "quantization_config" not in json.loads((folder / "merged" / "config.json").read_text())
    merged = answer(folder, "generate", "merged", *asked)
    if dtype == "float32":
        assert merged["completion"] == adapted["completion"]
    seen = answer(folder, "inspect-layers", "run")
    if kind != "mxfp4":  # whose experts are no linear modules
        assert seen["layers"][0]["modules"][0]["dtype"] == WORDS_FOR.get(kind, kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "trained_in"),
    [(kind, dtype) for kind in ("gptq", "nf4") for dtype in ("bfloat16", "float32")]
    + [pytest.param(kind, "bfloat16", marks=pytest.mark.slow) for kind in ("int8", "fp8", "awq", "compressed-tensors")],
)
def test_a_merge_in_float32_is_exact_whatever_it_was_trained_in(tmp_path: Path, kind: str, trained_in: str) -> None:
    """And whatever its weights were quantized from, and the tensors are in that are not quantized."""
    folder = place(tmp_path, "plain", dtype=trained_in)
    save_stored(folder / "model", kind, dtype=torch.bfloat16 if kind == "nf4" else torch.float32)
    answer(folder, "train", "c.yaml", "training.max_steps=2")
    assert answer(folder, "merge", "run", "merged", "--dtype", "float32")["kl_adapted_merged"] <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp8", "gptq", "awq", "nf4", "int8"])
def test_experts_that_loading_makes_of_quantized_tensors_are_merged(tmp_path: Path, kind: str) -> None:
    """They are written as the files had them, one by one, and dequantized like all else."""
    folder = place(tmp_path, kind, model_type="mixtral", **SIZES)
    assert answer(folder, "train", "c.yaml")["steps"] == 4
    assert answer(folder, "merge", "run", "merged", "--dtype", "float32")["kl_adapted_merged"] <= 1e-8
    merged = load_file(folder / "merged" / "model.safetensors")
    save_tiny(tmp_path / "plain", "mixtral", **SIZES)
    assert merged.keys() >= load_file(tmp_path / "plain" / "model.safetensors").keys()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_check_says_what_lora_on_a_quantized_folder_is(tmp_path: Path, kind: str) -> None:
    folder = place(tmp_path, kind)
    lora, qlora = (answer(folder, "check", "c.yaml", f"method={method}", f"quantization.type={kind}")
                   for method in ("lora", "qlora"))  # fmt: skip
    assert "the weights are quantized already" in " ".join(lora["notes"])
    assert "method: lora is then QLoRA" in " ".join(lora["notes"])
    assert "QLoRA" not in " ".join(qlora["notes"])
    assert lora["memory"]["weights"] == qlora["memory"]["weights"]
    assert lora["model"]["quantized_parameters"] == qlora["model"]["quantized_parameters"] > 0
    assert lora["model"]["quantization"] == qlora["model"]["quantization"]


@pytest.mark.slow
def test_qlora_on_a_quantized_folder_trains_what_lora_does(tmp_path: Path) -> None:
    folder = place(tmp_path, "nf4")
    answer(folder, "train", "c.yaml", "method=lora", "training.output_dir=run")
    first = losses(folder)
    answer(folder, "train", "c.yaml", "method=qlora", "training.output_dir=run", "--overwrite")
    assert losses(folder) == first


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("nf4", ["method=full"]),
        ("fp8", ["method=full"]),
        ("nf4", ["method=qlora", "quantization.type=fp4"]),
        ("fp8", ["method=qlora"]),
        ("gptq", ["method=qlora"]),
        ("awq", ["method=qlora"]),
        ("compressed-tensors", ["method=qlora"]),
        ("int8", ["method=qlora"]),
    ],
)
def test_what_is_quantized_is_not_trained_whole_nor_quantized_again(
    tmp_path: Path, kind: str, overrides: list[str], wording: Wording
) -> None:
    folder = place(tmp_path, kind)
    wording(refused(loraft("check", "c.yaml", *overrides, cwd=folder)))
    assert refused(loraft("train", "c.yaml", *overrides, cwd=folder))


DECLARED: dict[str, object] = {
    "gptq in 3 bits": {"quant_method": "gptq", "bits": 3, "group_size": 128},
    "gptq for marlin": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
    "awq for gemv": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemv"},
    "hqq": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
    "torchao": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "an unknown method": {"quant_method": "of tomorrow"},
    "no method": {"bits": 4},
    "no mapping": ["gptq"],
}


@pytest.mark.parametrize("method", DECLARED)
def test_what_cannot_be_read_here_is_refused_with_what_is_missing(
    tmp_path: Path, method: str, wording: Wording
) -> None:
    folder = place(tmp_path, "plain")
    declare(folder / "model", DECLARED[method])
    wording(refused(loraft("check", "c.yaml", cwd=folder)))


def test_another_quantization_is_not_asked_of_a_quantized_folder(tmp_path: Path, wording: Wording) -> None:
    folder = place(tmp_path, "nf4")
    wording(refused(loraft("generate", "model", "--quantize", "int8", "--prompt", "the", cwd=folder)))
    done = loraft("generate", "model", "--quantize", "nf4", "--prompt", "the", "--max-new-tokens", "2", cwd=folder)
    assert done.returncode == 0
    assert "its answers differ" not in done.stderr


@pytest.mark.slow
def test_a_quantized_base_has_no_other_to_merge_into(tmp_path: Path, wording: Wording) -> None:
    folder = place(tmp_path, "nf4")
    answer(folder, "train", "c.yaml", "training.max_steps=1")
    wording(refused(loraft("merge", "run", "--base", "original", cwd=folder)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_from_a_config_to_a_merged_model(tmp_path: Path, dtype: str) -> None:
    folder = place(tmp_path, "plain", dtype=dtype)
    int8 = ("method=qlora", "quantization.type=int8")
    told = answer(folder, "check", "c.yaml", *int8)
    assert told["model"]["quantization"] == "int8"
    whole = answer(folder, "train", "c.yaml", *int8)
    report = answer(folder, "merge", "run", "merged", "--dtype", dtype)
    assert report["base"] == "dequantized"
    assert "8 bits" in report["why_this_base"]
    assert report["kl_adapted_merged"] <= (1e-8 if dtype == "float32" else 1e-2)
    answer(folder, "train", "c.yaml", *int8, "training.output_dir=other", "training.max_steps=2")
    shorter = answer(folder, "train", "c.yaml", *int8, "training.output_dir=other", "--resume-anyway")
    assert shorter["steps"] == whole["steps"]
    one, other = ((folder / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("run", "other"))
    assert one == other


def test_a_bias_that_the_model_has_no_place_for_is_not_left_out(tmp_path: Path, wording: Wording) -> None:
    folder = place(tmp_path, "gptq")
    tensors = load_file(folder / "model" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"][3] = 1
    save_file(tensors, folder / "model" / "model.safetensors", {"format": "pt"})
    wording(refused(loraft("generate", "model", "--prompt", "the", cwd=folder)))

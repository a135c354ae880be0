"""What an earlier version wrote is still read, and gives what it gave then. README.md tells how the files were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraft.kernels.cpu_dequantize import read_blocks_across_rows
from tests.cli.running import loraft

EARLIER = Path(__file__).parent / "version_0_1_0"
CHECKPOINT = "run/checkpoints/step-000028"
PROMPT = ("--prompt", "the order is late")
GENERATORS = {
    "causal_lm": "adapters/causal_lm",
    "qlora": "adapters/qlora",
    "seq2seq_lm": "adapters/seq2seq_lm",
    "step-000028": CHECKPOINT,
}
CLASSIFIERS = {"seq_cls": "adapters/seq_cls", "merged_classifier": "merged_classifier"}
TARGETS = GENERATORS | CLASSIFIERS
ROWS = {
    "causal_lm": ("--data", "rows/chats.jsonl"),
    "qlora": ("--data", "rows/chats.jsonl"),
    "seq2seq_lm": ("--data", "rows/pairs.jsonl"),
    "step-000028": (),  # the rows that its run held out
    "seq_cls": ("--data", "rows/labelled.jsonl"),
    "merged_classifier": ("--data", "rows/labelled.jsonl", "--dtype", "float32"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A copy of the files, to run commands in; they were made on a CPU, and are compared with what a CPU gives."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if "qlora" in request.node.name:  # its base has rows of 32 numbers, which bitsandbytes read wrongly on a CPU then
        for module in ("kernels.cpu_dequantize", "kernels.packed_experts"):
            monkeypatch.setattr(f"loraft.{module}.read_blocks_across_rows", lambda: None)
        read_blocks_across_rows()._destroy()  # type: ignore[no-untyped-call]
        read_blocks_across_rows.cache_clear()
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def now(place: Path, *words: str) -> Any:
    """What a command tells as JSON today."""
    done = loraft(*words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def then(place: Path, name: str) -> Any:
    """What the earlier version told."""
    return json.loads((place / "told" / f"{name}.json").read_text())


def chosen(told: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: told[key] for key in keys}


def assert_alike(found: Any, expected: Any, where: str = "") -> None:
    """All that was told then is told now, numbers to 1e-4; what a later version tells besides may be there."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{where}.{key}"
            assert_alike(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, f"{where}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4), where
    else:
        assert found == expected, where


@pytest.mark.slow
@pytest.mark.parametrize("config", ["causal_lm.yaml", "run/config.yaml"])
def test_a_stopped_run_goes_on_to_the_weights_of_a_run_that_was_not_stopped(place: Path, config: str) -> None:
    """The weights are those that the earlier version saved after the same 60 steps without a stop.

    On a machine like the one that wrote them they are equal bit for bit. With the instructions of other CPUs (AVX2,
    SSE4.2) or two threads they differ by at most 1.5e-7; step 28 is 0.05 away from step 60.
    """
    metrics = place / "run" / "metrics.jsonl"
    before = metrics.read_text()
    told = now(place, "train", config, "--resume")
    assert_alike(
        told,
        chosen(
            then(place, "train"), "steps", "loss", "eval_loss", "best_step", "best_eval_loss", "saved_step",
            "trained_tokens",
        ),
    )  # fmt: skip
    assert metrics.read_text().startswith(before)
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if "grad_norm" in row]
    assert steps == list(range(1, 61))
    weights = load_file(place / "run" / "adapter" / "adapter_model.safetensors")
    expected = load_file(place / "adapters" / "causal_lm" / "adapter_model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(weights[name], tensor, rtol=0, atol=1e-6), name


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", GENERATORS)
def test_generate_takes_the_same_tokens(place: Path, name: str) -> None:
    told = now(place, "generate", GENERATORS[name], *PROMPT, "--temperature", "0")
    expected = then(place, f"generate_{name}")
    assert_alike(told, chosen(expected, "prompt", "completion", "token_ids", "logprobs", "finish_reason"))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_predict_tells_the_same_classes(place: Path, name: str) -> None:
    told = now(place, "predict", CLASSIFIERS[name], "--input", "rows/labelled.jsonl", "--dtype", "float32")
    expected = then(place, f"predict_{name}")
    assert {row["prediction"] for row in expected} == {"fine", "late"}
    assert_alike(told, [chosen(row, "text", "label", "prediction", "probabilities") for row in expected])


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_evaluate_measures_the_same(place: Path, name: str) -> None:
    told = now(place, "evaluate", TARGETS[name], *ROWS[name])
    expected = then(place, f"evaluate_{name}")
    assert_alike(
        told,
        chosen(expected, "task", "loss", "perplexity", "metrics", "rows", "references", "tokens", "confusion_matrix"),
    )


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", TARGETS)
def test_inspect_layers_finds_the_same(place: Path, name: str) -> None:
    """The parts of the model, what LoRA trained there, and how far each module moved."""
    told = now(place, "inspect-layers", TARGETS[name])
    expected = then(place, f"inspect-layers_{name}")
    keys = ["model", "model_type", "architecture", "kind", "stacks", "parameters_by_part", "dtypes", "lora", "layers"]
    assert ("adapters" in expected) == (name != "merged_classifier")
    assert_alike(told, chosen(expected, *keys, *(["adapters"] if "adapters" in expected else [])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal_lm", "qlora", "seq2seq_lm"])
def test_a_merged_adapter_answers_as_the_adapter_did(place: Path, name: str) -> None:
    _merge(place, name)
    told = now(place, "generate", "merged", *PROMPT, "--temperature", "0", "--dtype", "float32")
    assert_alike(told, chosen(then(place, f"generate_{name}"), "token_ids", "logprobs"))


@pytest.mark.slow
def test_a_merged_classifier_tells_the_classes_that_the_adapter_told(place: Path) -> None:
    _merge(place, "seq_cls")
    told = now(place, "predict", "merged", "--input", "rows/labelled.jsonl", "--dtype", "float32")
    assert_alike(told, [chosen(row, "prediction", "probabilities") for row in then(place, "predict_seq_cls")])
    weights, expected = (load_file(place / of / "model.safetensors") for of in ("merged", "merged_classifier"))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(weights[name], tensor, rtol=0, atol=1e-6), name


def _merge(place: Path, name: str) -> None:
    report = now(place, "merge", f"adapters/{name}", "merged")
    expected = then(place, f"merge_{name}")
    assert_alike(
        report,
        chosen(expected, "base", "dtype", "base_model", "architecture", "changed_tensors", "verified", "warnings"),
    )

"""What commands say and write on a GPU: the first lines of a run, comparisons, layers, kept layers, the quickstart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.running import loraft
from tests.gpu.runs import METHODS, equal, said, written
from tests.training.test_trainer import metrics

pytestmark = pytest.mark.gpu(or_cpu=True)

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
IS_CUDA = torch.cuda.is_available()


@pytest.mark.parametrize("method", METHODS)
def test_the_first_lines_tell_the_device_and_what_computes(tmp_path: Path, method: str) -> None:
    done = loraft("train", "c.yaml", cwd=written(tmp_path, **METHODS[method]))
    assert done.returncode == 0, done.stderr
    said_at_first = done.stderr.partition("step 1")[0]
    assert (f"device cuda ({torch.cuda.get_device_name()}" if IS_CUDA else "device cpu") in said_at_first
    assert ("tried on this GPU" in said_at_first or "torch's own operations" in said_at_first) == IS_CUDA
    assert "flex attention" not in said_at_first


def test_methods_are_compared_in_processes_of_their_own(tmp_path: Path) -> None:
    told = said(written(tmp_path, model__dtype="bfloat16"), "compare", "c.yaml", "--steps", "2")
    assert [(each["method"], each["why"]) for each in told["methods"]] == [
        (name, None) for name in ("full", "lora", "qlora")
    ]
    assert all(each["measured"] for each in told["methods"])


def test_layers_of_an_adapter_are_inspected(tmp_path: Path) -> None:
    place = written(tmp_path, **METHODS["qlora"])
    said(place, "train", "c.yaml")
    assert said(place, "inspect-layers", "wide", "--adapter", "run/adapter")
    assert said(place, "inspect-layers", "--gradients", "run")
    assert said(place, "inspect-layers", "run", "--activations", "the order")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_kept_layers_give_the_losses_of_those_that_are_computed(tmp_path: Path, method: str) -> None:
    place = written(tmp_path, **METHODS[method])
    words = ("train", "c.yaml", "lora.layers=last:1", "data.shuffle=batches", "training.max_steps=9")
    for name, kept in (("on", "true"), ("off", "false")):
        said(place, *words, f"training.output_dir={name}", f"training.cache_frozen_prefix={kept}")
    on, off = ([line["loss"] for line in metrics(place / name) if "loss" in line] for name in ("on", "off"))
    assert on == (pytest.approx(off, rel=1e-2) if IS_CUDA else off)


@pytest.mark.parametrize("double", ["true", "false"])
def test_a_merge_on_the_gpu_writes_the_bytes_of_one_on_the_cpu(tmp_path: Path, double: str) -> None:
    """The base as the GPU quantized it is what a CPU makes of the same files; the proof ran on each."""
    place = written(tmp_path, **METHODS["qlora"])
    said(place, "train", "c.yaml", f"quantization.double_quant={double}")
    said(place, "merge", "run", "here")
    command = [sys.executable, "-m", "loraft", "merge", "run", "on-cpu"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=place, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert equal(*(load_file(place / name / "model.safetensors") for name in ("here", "on-cpu")))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_merged_in_memory_answers_as_the_files_of_a_merge(tmp_path: Path, method: str) -> None:
    place = written(tmp_path, **METHODS[method])
    said(place, "train", "c.yaml")
    said(place, "merge", "run", "merged", "--dtype", "bfloat16")
    words = ("--prompt", "the order is late", "--max-new-tokens", "8", "--dtype", "bfloat16")
    in_memory, from_files = said(place, "generate", "run", "--merge", *words), said(place, "generate", "merged", *words)
    assert in_memory["token_ids"] == from_files["token_ids"]


@pytest.mark.slow
def test_the_quickstart_trains_and_answers(tmp_path: Path) -> None:
    """Its config, but for the number of steps and what is measured on the way."""
    (tmp_path / "c.yaml").write_text(QUICKSTART.read_text(encoding="utf-8"), encoding="utf-8")
    few = ("training.max_steps=3", "training.output_dir=run", "training.sample_prompts=[]", "data.eval=null")
    told = said(tmp_path, "train", "c.yaml", *few)
    assert told["steps"] == 3
    assert 0 < told["loss"] < 5
    answer = said(tmp_path, "generate", "run", "--prompt", "the order is late", "--max-new-tokens", "4")
    assert len(answer["token_ids"]) <= 4

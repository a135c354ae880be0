"""The benchmark of a GPU, as far as it can be tried without one."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraft.config.sections import ModelSection
from loraft.models.device import CUDA_TAKES, select_device

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a script as a module, as it sees the others."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return import_module


@pytest.fixture
def ran(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the script with other pieces on a machine with a GPU, and gives its exit code."""
    bench = script("benchmark_gpu")

    def run(*words: str, gpu: bool = True, **pieces: Any) -> Any:
        monkeypatch.setattr(sys, "argv", ["benchmark_gpu.py", *words])
        monkeypatch.setattr(bench, "has_gpu", lambda: gpu)
        for name, piece in pieces.items():
            monkeypatch.setitem(bench.PIECES, name, piece)
        try:
            bench.main()
        except SystemExit as left:
            return left.code
        return 0

    return run


def test_operations_are_counted_as_the_page_says(script: Any) -> None:
    """Two layers of width 4 with one head of keys for two, feed-forward 8, vocabulary 10, rank 1, rows of 3 and 5."""
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "vocab_size": 10}  # fmt: skip
    frozen = 2 * (2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8) + 4 * 10
    adapter = 2 * (2 * 8 + 2 * 6 + 3 * 12)
    by_hand = 8 * (4 * frozen + 6 * adapter) + 6 * (3**2 + 5**2) * 4 * 2
    assert script("benchmark_gpu_models").operations(sizes, 1, [3, 5]) == by_hand


@pytest.mark.parametrize(("kink", "slope"), [(100, 1.0), (4096, 0.3), (200_000, 2.0)])
def test_the_longest_row_is_found(script: Any, kink: int, slope: float) -> None:
    """Memory grows with the tokens, from a place on at another rate."""

    def share(tokens: int) -> float:
        return 0.3 + 1e-5 * min(tokens, kink) + slope * 1e-5 * max(tokens - kink, 0)

    filled = script("benchmark_gpu_workers").FILLED
    exact = (filled - 0.3) / 1e-5 if filled <= 0.3 + 1e-5 * kink else kink + (filled - 0.3 - 1e-5 * kink) / slope / 1e-5
    found = script("benchmark_gpu_workers").longest(share, 500_000)
    assert 0.98 * exact <= found <= exact
    assert script("benchmark_gpu_workers").longest(share, 1000) == 1000


def test_a_large_gpu_is_told_to_be_a_small_one(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To loraft as well as to torch's allocator."""
    real = SimpleNamespace(total_memory=140 * 10**9, name="a GPU", major=9)
    told: list[float] = []
    for name, value in {
        "get_device_properties": lambda *_: real, "set_per_process_memory_fraction": told.append,
        "mem_get_info": None, "memory_reserved": lambda: 10**9, "is_available": lambda: True,
        "get_device_name": lambda: "a GPU", "is_bf16_supported": lambda **_: True,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    script("benchmark_gpu_workers").cap(8, "cuda")
    placement = select_device(ModelSection(name_or_path="any"))
    assert told == [(8 * 10**9 - CUDA_TAKES) / 140e9]
    assert (placement.total_bytes, placement.available_bytes) == (8 * 10**9, 7 * 10**9 - CUDA_TAKES)
    assert torch.cuda.get_device_properties(0).total_memory == 8 * 10**9
    assert torch.cuda.get_device_properties(0).major == 9


def test_a_hollow_model_loads_and_takes_no_disk(script: Any, tmp_path: Path) -> None:
    models = script("benchmark_gpu_models")
    sizes = models.TINY | {"intermediate_size": 65536}
    models.write_model(tmp_path, sizes, device="cpu", hollow=True)
    file = (tmp_path / "model.safetensors").stat()
    assert file.st_size > 50 * 10**6
    assert 512 * file.st_blocks < 10**6
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not model.model.layers[1].mlp.up_proj.weight.any()
    assert model.lm_head.weight.std().item() == pytest.approx(models.SPREAD, rel=0.05)
    assert model.model.norm.weight.eq(1).all()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    models.write_rows(tmp_path / "rows.jsonl", 512, [40])
    ids = tokenizer(json.loads((tmp_path / "rows.jsonl").read_text())["text"])["input_ids"]
    assert len(ids) == 40
    assert tokenizer.unk_token_id not in ids


def test_without_a_gpu_it_says_so(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(gpu=False) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["no-such-piece"], ["--device", "cpu"], ["--warm-up", "20"]])
def test_what_cannot_be_is_refused(ran: Any, words: list[str]) -> None:
    assert ran(*words) == 2


def test_a_piece_that_fails_says_why_and_the_next_begins(
    ran: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("raise MemoryError('too much')")
    monkeypatch.setattr(script("benchmark_gpu"), "WORKERS", worker)
    begun: list[str] = []

    def fails(bench: Any) -> None:
        begun.append("fails")
        bench.work("job")

    assert ran("one", "two", one=fails, two=lambda _: begun.append("works")) == 3
    said = capsys.readouterr().err
    assert begun == ["fails", "works"]
    assert "one failed: job ended with 1: " in said
    assert "MemoryError: too much" in said
    assert ran("two", two=lambda _: begun.append("works")) == 0


@pytest.mark.slow
def test_a_tiny_run_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    words = ["--tiny", "--device=cpu", "--steps=3", "--warm-up=1", f"--json={path}", "qlora-8b", "row-8gb"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/benchmark_gpu.py", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["unit"] for line in lines} == {"TFLOP/s", "tokens/s", "GB", "tokens"}
    assert all(line["value"] > 0 for line in lines)
    named = dict.fromkeys(line["measured"].split(",")[0] for line in lines if line["unit"].startswith("tokens"))
    # Beside TRL and without, as it is installed or not.
    assert list(named) == ["QLoRA r 32", "a row (longer ones were not tried) trained within 8 GB"]
    used = next(line for line in lines if line["measured"].endswith("operations"))
    assert 0 < used["ratio"] < 1

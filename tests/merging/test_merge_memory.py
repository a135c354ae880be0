"""What merging a large model takes: memory that does not grow with it.

Slow: it writes a model of 3 GB with random numbers, merges it in a process of its own, and removes both.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraft.models.safetensors_index import Slot, in_order, write_index, write_shard
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[2]
HIDDEN, INNER, VOCABULARY, LAYERS, RANK = 4096, 11008, 32000, 6, 16
"""The geometry of Llama-2-7B, with 6 of its 32 layers."""
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
LARGEST_BYTES = 2 * VOCABULARY * HIDDEN
MOST_ANONYMOUS_BYTES = 1_470_000_000


@pytest.fixture
def workplace() -> Iterator[Path]:
    """A folder on a disk with room, removed at once: pytest keeps its own for three runs."""
    folder = Path(tempfile.mkdtemp())
    if shutil.disk_usage(folder).free < 8_000_000_000:
        pytest.skip("needs 8 GB of free disk")
    yield folder
    shutil.rmtree(folder)


def write_base(folder: Path) -> int:
    """A Llama of random numbers in bfloat16, a shard for each layer; its size in bytes."""
    folder.mkdir()
    numbers = torch.empty(VOCABULARY * HIDDEN, dtype=torch.bfloat16).normal_(std=0.02)
    shards = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}]
    shards[0]["model.norm.weight"] = (HIDDEN,)  # type: ignore[assignment]
    for index in range(LAYERS):
        layer = {f"model.layers.{index}.{name}.weight": shape for name, shape in LAYER.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        shards.append(layer | {f"model.layers.{index}.{norm}.weight": (HIDDEN,) for norm in norms})  # type: ignore[misc]
    places, total = {}, 0
    for number, shard in enumerate(shards):
        slots = in_order(Slot(name, "BF16", shape) for name, shape in shard.items())
        file = f"model-{number:05}.safetensors"
        write_shard(folder / file, slots, lambda slot: [numbers[: slot.num_bytes // 2]])
        places |= dict.fromkeys(shard, file)
        total += sum(slot.num_bytes for slot in slots)
    write_index(folder, places, total)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 32,
        "num_key_value_heads": 32, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(folder)
    return total


def write_adapter(folder: Path, base: Path) -> None:
    folder.mkdir()
    tensors = {}
    for index in range(LAYERS):
        for name, (out, features) in LAYER.items():
            module = f"base_model.model.model.layers.{index}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, features) / features**0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(out, RANK) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "base_model_name_or_path": str(base)}
    config["target_modules"] = [name.rpartition(".")[2] for name in LAYER]
    (folder / "adapter_config.json").write_text(json.dumps(config))


def anonymous_bytes(process: subprocess.Popen[str]) -> int:
    """The memory of a process that is not a file's; none once it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is told by Linux' /proc")
def test_three_gigabytes_are_merged_in_half_of_that(workplace: Path) -> None:
    total = write_base(workplace / "base")
    assert total >= 2 * MOST_ANONYMOUS_BYTES
    write_adapter(workplace / "adapter", workplace / "base")
    out = workplace / "out"
    words = [sys.executable, "-m", "loraft", "merge", str(workplace / "adapter"), str(out), "--no-verify", "--json"]
    peak = 0
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process))
            time.sleep(0.01)
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert report["changed_tensors"] == 7 * LAYERS
    assert report["weights_bytes"] == total
    print(f"\npeak of anonymous memory: {peak / 1e6:.0f} MB; merged in {report['merge_seconds']} s")
    assert 0 < peak < MOST_ANONYMOUS_BYTES
    assert peak < 4 * LARGEST_BYTES + 500_000_000

"""No rank of those that hold parts holds the model, while it loads or later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraft.config.schema import RunConfig
from tests.distributed.part_memory import of_ranks
from tests.tiny import save_tiny
from tests.training.building import rows, tiny_config, write_rows

A_LAYER = 17 * 2**20
"""What one of the made layers takes in float32."""
BESIDES = 64 * 2**20
"""What a process takes besides for the tokenizer and the rows."""


def in_parts(tmp_path: Path, model: Path, method: str) -> RunConfig:
    return RunConfig.model_validate({
        "method": method,
        "model": {"name_or_path": str(model), "dtype": "bfloat16"},
        "data": {"train": str(write_rows(tmp_path / "train.jsonl", rows())), "eval": None, "max_length": 64},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "per_device_train_batch_size": 2},
        "lora": {"r": 4},
        "distributed": {"strategy": "fsdp2"},
    })  # fmt: skip


@pytest.mark.slow
def test_loading_holds_a_part_and_what_is_gathered_twice(tmp_path: Path, smollm2: Path) -> None:
    """SmolLM2's embeddings, 57 MB in 16 bits, are eight of its layers: they are what is gathered at once."""
    small = save_tiny(tmp_path / "small")
    runs = {method: [in_parts(tmp_path, model, method) for model in (small, smollm2)] for method in ("lora", "qlora")}
    for method, found in of_ranks("loading", runs, tmp_path):
        assert not isinstance(found, str), found
        loading, most, own, gathered = found
        assert loading <= 1.2 * (own + gathered), f"the whole model is more: {method}"
        assert most <= 1.2 * (own + 2 * gathered) + BESIDES, method


WIDE: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6},
    "t5": {"hidden_size": 512, "d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 4},
}
"""Models of layers that are much larger than their embeddings."""
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"model_type": "llama", "lora__use_dora": True, "lora__modules_to_save": ["lm_head"]},
    "classifier": {"model_type": "llama", "task": "seq_cls"},
    "pairs": {"model_type": "t5", "task": "seq2seq_lm"},
}
"""What else is loaded in parts, beside decoders that are trained in the plain way."""


@pytest.mark.slow
def test_whatever_is_trained_no_rank_loads_the_model(tmp_path: Path) -> None:
    """A part is half of 100 MB and more; what is looked at meanwhile is a module, less than a layer."""
    runs = {}
    for kind, of_kind in KINDS.items():
        options, folder = {**of_kind, "distributed__strategy": "fsdp2"}, tmp_path / kind
        family = str(options["model_type"])
        runs[kind] = [tiny_config(each, **options) for each in (folder / "small", folder)]
        save_tiny(folder / "model", family, **WIDE[family])
    for kind, found in of_ranks("loading", runs, tmp_path):
        assert not isinstance(found, str), found
        loading, most, own, _ = found
        assert loading <= 1.2 * own + 2 * A_LAYER, kind
        assert most <= 1.2 * own + 3 * A_LAYER, kind

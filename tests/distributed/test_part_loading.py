"""No rank of those that hold parts holds the model, while it loads or later."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loraft.config.schema import RunConfig
from loraft.distributed.ranks import Ranks
from loraft.distributed.sharding import own_part
from loraft.io.held_memory import give_back_at_once, release_freed
from loraft.training.run_dir import RunFolder
from loraft.training.run_plan import plan_run
from loraft.training.train_step import Trainer
from loraft.training.trainer import build_model
from tests.distributed.forked import forked
from tests.tiny import save_tiny
from tests.training.building import rows, tiny_config, write_rows

A_LAYER = 17 * 2**20
"""What one of the made layers takes in float32."""
BESIDES = 64 * 2**20
"""What a process takes besides for the tokenizer and the rows."""


def held_now() -> int:
    """The bytes of this process that lie in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def loaded_bytes(config: RunConfig, ranks: Ranks) -> tuple[int, int, int, int]:
    """The most that loading held, and sharding after it; what a rank has of the weights, and the largest tensor."""
    plan = plan_run(config, ranks=ranks)
    gc.collect()
    give_back_at_once()  # a process that has run other tests would keep what is freed
    release_freed("cpu")
    before, most, done = held_now(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], held_now() - before)
            time.sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    folder = RunFolder(Path(str(config.training.output_dir)), writes=False)
    adapted = build_model(plan, ranks)
    loading = most[0]
    run = Trainer(plan, folder, adapted, str, lambda _: None, [], ranks)
    done.set()
    watching.join()
    parts = [own_part(weight) for weight in run.loss.parameters()]
    table = run.adapted.loaded.model.get_input_embeddings().weight
    return (
        loading,
        most[0],
        sum(part.numel() * part.element_size() for part in parts),
        table.numel() * table.element_size(),
    )


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
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_loading_holds_a_part_and_what_is_gathered_twice(tmp_path: Path, smollm2: Path, method: str) -> None:
    """SmolLM2's embeddings, 57 MB in 16 bits, are eight of its layers: they are what is gathered at once."""
    config = in_parts(tmp_path, smollm2, method)
    small = in_parts(tmp_path, save_tiny(tmp_path / "small"), method)

    def measured(ranks: Ranks) -> tuple[int, int, int, int]:
        loaded_bytes(small, ranks)  # so that what loading imports, and compiles the first time, is there
        return loaded_bytes(config, ranks)

    for found in forked(2, measured):
        assert not isinstance(found, str), found
        loading, most, own, gathered = found
        assert loading <= 1.2 * (own + gathered), "the whole model is more"
        assert most <= 1.2 * (own + 2 * gathered) + BESIDES


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
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_trained_no_rank_loads_the_model(tmp_path: Path, kind: str) -> None:
    """A part is half of 100 MB and more; what is looked at meanwhile is a module, less than a layer."""
    options = {**KINDS[kind], "distributed__strategy": "fsdp2"}
    family = str(options["model_type"])
    small, config = tiny_config(tmp_path / "small", **options), tiny_config(tmp_path, **options)
    save_tiny(tmp_path / "model", family, **WIDE[family])

    def measured(ranks: Ranks) -> tuple[int, int, int, int]:
        loaded_bytes(small, ranks)
        return loaded_bytes(config, ranks)

    for found in forked(2, measured):
        assert not isinstance(found, str), found
        loading, most, own, _ = found
        assert loading <= 1.2 * own + 2 * A_LAYER
        assert most <= 1.2 * own + 3 * A_LAYER

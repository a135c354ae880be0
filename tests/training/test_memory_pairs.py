"""The memory of encoder-decoders: both stacks count, and the prediction is near what came."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tavi import save_small_t5, sentences, write_pairs


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["method=full"],
        ["method=qlora", "training.gradient_checkpointing=true"],
        ["lora.layers={decoder: last:2}"],
    ],
    ids=["full", "qlora, checkpointed", "last layers"],
)
def test_the_prediction_for_a_t5_is_within_a_quarter_of_what_came(tmp_path: Path, options: list[str]) -> None:
    """Measured in a process of its own, against the highest resident memory that the system saw."""
    save_small_t5(tmp_path / "base", width=768, layers=6)
    write_pairs(tmp_path / "pairs.jsonl", sentences(600, seed=1), "tavi")
    config = tmp_path / "c.yaml"
    config.write_text(
        "task: seq2seq_lm\n"
        f"model: {{name_or_path: {tmp_path / 'base'}}}\n"
        f"data: {{train: {tmp_path / 'pairs.jsonl'}, eval: null, source_lang: en, target_lang: tavi}}\n"
        f"training: {{max_steps: 2, per_device_train_batch_size: 256, output_dir: {tmp_path / 'run'}}}\n"
    )

    command = [sys.executable, "-m", "loraft", "train", str(config), *options, "--json"]
    came = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["peak_bytes"]
    predicted = json.loads((tmp_path / "run/manifest.json").read_text())["planned"]["peak_bytes"]
    assert predicted == pytest.approx(came, rel=0.25), f"{predicted / came:.2f} of what came"

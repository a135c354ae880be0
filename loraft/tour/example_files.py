"""The files that the commands of the tour name: configs of models and of runs, and a small model of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from loraft.config.sections import ModelSection
from loraft.io.atomic import write_whole
from loraft.io.checksums import build_once
from loraft.models.auto_model import random_model
from loraft.models.load_model import load_tokenizer
from loraft.tour.screens import DECODER

RANDOM_T5 = "random-t5"
LLAMA_2: Mapping[str, Any] = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"model_type": "bert"},
    "gpt2": {"model_type": "gpt2"},
    "marian": {"model_type": "marian"},
    "t5-small": {"model_type": "t5"},
    "llama-2-7b": LLAMA_2,
    "llama-2-70b": {
        **LLAMA_2,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""Models of which the config alone is there, with transformers' own sizes but for those that are written."""

RUN = f"""\
# A few steps on generated messages of customers, so that there is something to look at.
method: {{method}}
model:
  name_or_path: {DECODER}
data:
  train: builtin:tickets
  eval: 0.02
training:
  max_steps: 4
  per_device_train_batch_size: 2
  learning_rate: 1.0e-3
  output_dir: {{method}}-run
"""


def write_examples(folder: Path) -> None:
    """Write them into a folder; the model is made where it is not there yet, or was altered.

    Raises:
        InvalidInputError: The folder cannot be written.
    """
    build_once(folder / RANDOM_T5, _random_t5)
    for name, sizes in CONFIGS.items():
        build_once(folder / name, AutoConfig.for_model(**sizes).save_pretrained)
    for method in ("lora", "qlora"):
        write_whole(folder / f"{method}.yaml", RUN.format(method=method))


def _random_t5(folder: Path) -> None:
    """Two stacks of two layers; the weights are large enough that it is sure of the nonsense that it says."""
    tokenizer = load_tokenizer(ModelSection(name_or_path=DECODER))
    config = AutoConfig.for_model(
        "t5",
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        initializer_factor=3.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    random_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

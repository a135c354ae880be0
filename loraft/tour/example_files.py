"""The files that the commands of the tour name: configs, rows, and a small model of random weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from loraft.config.sections import ModelSection
from loraft.io.atomic import write_whole
from loraft.io.checksums import build_once
from loraft.models.auto_model import random_model
from loraft.models.hf_config import quietly
from loraft.models.load_model import load_tokenizer
from loraft.rows.synthetic_tickets import tickets
from loraft.tour.screens import DECODER, ENCODER

RANDOM_T5 = "random-t5"
LLAMA_2: Mapping[str, Any] = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
LLAMA: Mapping[str, Any] = {**LLAMA_2, "max_position_embeddings": 2048}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"model_type": "bert"},
    "gpt2": {"model_type": "gpt2"},
    "marian": {"model_type": "marian"},
    "t5-small": {"model_type": "t5"},
    "llama-2-7b": LLAMA_2,
    "llama-33b": {
        **LLAMA,
        "hidden_size": 6656,
        "intermediate_size": 17920,
        "num_hidden_layers": 60,
        "num_attention_heads": 52,
    },
    "llama-65b": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 22016,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
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
  train: tickets.jsonl
  eval: 0.2
training:
  max_steps: 4
  per_device_train_batch_size: 2
  learning_rate: 1.0e-3
  output_dir: {{method}}-run
"""
SENTIMENT = f"""\
# Is a review positive or negative? The held-out reviews say so in words that no training row has.
task: seq_cls
method: lora
model:
  name_or_path: {ENCODER}
data:
  train: reviews.csv
  eval: reviews-in-other-words.csv
training:
  num_train_epochs: 1
  per_device_train_batch_size: 16
  learning_rate: 2.0e-3
  output_dir: sentiment-run
"""
TICKETS = 40
"""How many of the built-in rows: few enough for networks that are trained from scratch in seconds."""
SUBJECTS = ("film", "story", "acting", "music", "ending", "plot")
LEARNED = {
    "positive": ("good", "great", "lovely", "wonderful", "funny", "moving", "brilliant", "charming"),
    "negative": ("bad", "awful", "boring", "terrible", "dull", "weak", "silly", "dreadful"),
}
HELD_OUT = {
    "positive": ("superb", "delightful", "excellent", "gripping"),
    "negative": ("horrible", "tedious", "poor", "disappointing"),
}


def write_examples(folder: Path) -> None:
    """Write them into a folder; what is made of a model's sizes is made where it is not there yet, or was altered.

    Raises:
        InvalidInputError: The folder cannot be written.
    """
    build_once(folder / RANDOM_T5, _random_t5)
    for name, sizes in CONFIGS.items():
        build_once(folder / name, AutoConfig.for_model(**sizes).save_pretrained)
    texts = {f"{method}.yaml": RUN.format(method=method) for method in ("lora", "qlora")}
    texts |= {
        "sentiment.yaml": SENTIMENT,
        "tickets.jsonl": "".join(f"{json.dumps(row)}\n" for row in tickets("train")[:TICKETS]),
        "reviews.csv": _reviews(LEARNED),
        "reviews-in-other-words.csv": _reviews(HELD_OUT),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)


def _reviews(words: Mapping[str, Sequence[str]]) -> str:
    """A sentence on each subject, and one on each pair, for each word."""
    lines = ["text,label"]
    for label, all_of_it in words.items():
        for word, subject in itertools.product(all_of_it, SUBJECTS):
            lines.append(f"The {subject} was {word}.,{label}")
        for word, (one, other) in zip(all_of_it, itertools.permutations(SUBJECTS, 2), strict=False):
            lines.append(f"I thought the {one} and the {other} were {word}.,{label}")
    return "\n".join(lines) + "\n"


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
    with quietly():  # a bar for one file of weights
        random_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

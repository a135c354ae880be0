"""A translator from nothing: a small T5 of random weights learns a made-up language, and then a dialect by LoRA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import loraft
from tests.tavi import DIALECTS, Sentence, save_small_t5, sentences, write_pairs

TRAINED = 8000
HELD_OUT = 150

FROM_NOTHING = """\
task: seq2seq_lm
method: full
model: {name_or_path: base}
data: {train: tavi.jsonl, eval: held-tavi.jsonl, source_lang: en, target_lang: tavi, max_length: 64}
training:
  output_dir: tavi
  max_steps: 1200
  per_device_train_batch_size: 64
  learning_rate: 1e-3
  eval_steps: 600
  save_steps: 1200
generation: {max_new_tokens: 40}
"""
BY_LORA = """\
task: seq2seq_lm
model: {name_or_path: tavi/model}
lora: {r: 16, alpha: 32}
data: {train: northern.jsonl, eval: held-northern.jsonl, source_lang: en, target_lang: northern, max_length: 64}
training:
  output_dir: northern
  max_steps: 400
  per_device_train_batch_size: 64
  learning_rate: 2e-3
  eval_steps: 200
  save_steps: 400
generation: {max_new_tokens: 40}
"""


def told(place: Path, *words: str) -> Any:
    """What a command prints as JSON."""
    done = loraft(*words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def exact_match(place: Path, target: str, held_out: Sequence[Sentence], dialect: str) -> float:
    """The share of held-out sentences that a target translates to the letter."""
    prompts, answers = f"{dialect}-prompts.jsonl", f"{target.replace('/', '-')}-{dialect}-answers.jsonl"
    (place / prompts).write_text("".join(json.dumps({"prompt": each.english}) + "\n" for each in held_out))
    told(place, "generate", target, "--input", prompts, "--output", answers, "--batch-size", "50")
    said = [json.loads(line)["completion"] for line in (place / answers).read_text().splitlines()]
    right = [one == DIALECTS[dialect](each) for one, each in zip(said, held_out, strict=True)]
    return sum(right) / len(right)


@pytest.mark.slow
def test_a_t5_of_random_weights_learns_a_language_and_then_its_dialect_by_lora(tmp_path: Path) -> None:
    """At least 95 % of held-out sentences to the letter, and 90 % in the dialect: all through the command line."""
    save_small_t5(tmp_path / "base")
    drawn = sentences(TRAINED + HELD_OUT, seed=1)
    train, held_out = drawn[:TRAINED], drawn[TRAINED:]
    for dialect in DIALECTS:
        write_pairs(tmp_path / f"{dialect}.jsonl", train, dialect)
        write_pairs(tmp_path / f"held-{dialect}.jsonl", held_out, dialect)
    (tmp_path / "tavi.yaml").write_text(FROM_NOTHING)
    (tmp_path / "northern.yaml").write_text(BY_LORA)
    told(tmp_path, "train", "tavi.yaml")
    assert exact_match(tmp_path, "tavi", held_out, "tavi") >= 0.95
    before = exact_match(tmp_path, "tavi", held_out, "northern")
    told(tmp_path, "train", "northern.yaml")
    learned = exact_match(tmp_path, "northern", held_out, "northern")
    assert before < 0.1
    assert learned >= 0.90


def test_the_languages_are_a_function_of_the_seed_and_differ() -> None:
    drawn = sentences(50, seed=1)
    assert drawn == sentences(50, seed=1)
    assert drawn != sentences(50, seed=2)
    assert len(set(drawn)) == 50
    assert all(each.tavi != each.northern for each in drawn)


def test_a_sentence_by_hand() -> None:
    drawn = next(each for each in sentences(400, seed=1) if each.subject.number and each.done_to.adjective)
    assert drawn.tavi.split()[-1] == drawn.northern.split()[0]
    assert drawn.northern.split().count("ka") == 1

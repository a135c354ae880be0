"""The parts of the tour: what is commonly said has its place, and every command can be typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from loraft.cli.app import app
from loraft.models.builtin import BUILTINS
from loraft.tour import PARTS
from loraft.tour.example_files import CONFIGS, HELD_OUT, LEARNED, RANDOM_T5, SUBJECTS, _reviews, write_examples
from loraft.tour.screens import Fact, Shown, percent, spelt

GENERATING = (
    "GPT, BERT and LLaMA generate text",
    '"Hello, how are" is three tokens: 15496, 703, 389',
    "positions are added to the embeddings",
    "a layer has one residual and one norm",
    "the cache speeds up processing the sequence again",
    "softmax predicts the next token",
    "generation stops at EOS",
    "the decoder's self-attention is like the encoder's",
    "the encoder produces a context vector",
    "translation needs an encoder–decoder",
    "GPT works in parallel, LSTM in sequence",
)
POSITIONS = (
    "sinusoidal: BERT, GPT-2",
    "rotary: GPT-3",
    "learned: T5",
    "added once, before layer 1, never inside",
)
INSIDE_A_LAYER = (
    "a Q, K and V set for each head",
    "the feed-forward part is 4 times larger than attention",
    "GELU, layer norm",
    "AutoModel.from_pretrained(...).model.layers",
    "early layers syntax, deep layers reasoning",
)
LORA = (
    "ΔW = A × B",
    "adapters are merged dynamically at inference",
    "q and v are the usual targets",
    "the last few layers are the usual choice",
    "rank 8 on 4096 × 4096: 64 K instead of 16 M",
    "an adapter is a few MB",
)
QLORA = (
    "no dequantisation during training",
    "double quantization stores the weights smaller",
    "the quantised model stays mostly frozen",
    "QLoRA is the fastest",
    "13B, 33B, 65B on a consumer GPU",
    "full fine-tuning fits an 80 GB card",
)
RECURRENT = (
    "LSTM: forget, input and output gate",
    "few parameters but scales poorly with length",
    "175B parameters enable parallelism",
    "early layers barely update",
    "transformers have no vanishing gradients",
    "the gates save the gradient",
    "the last hidden state",
)
LEFT_OUT = (
    "a learned table is a hard limit on length",
    "paged optimizers are the third idea",
    "a QLoRA adapter merged into the 16-bit base is not the model that was trained",
)
"""What is so and tutorials do not say."""

FACTS = [fact for part in PARTS.values() for screen in part.screens for fact in screen.facts]
COMMANDS = [shown for part in PARTS.values() for screen in part.screens for shown in screen.commands]


@pytest.mark.parametrize("said", [*GENERATING, *POSITIONS, *INSIDE_A_LAYER, *LORA, *QLORA, *RECURRENT])
def test_what_is_commonly_said_is_answered_by_a_measurement(said: str) -> None:
    assert any(fact.said == said for fact in FACTS)


@pytest.mark.parametrize("so", LEFT_OUT)
def test_what_tutorials_leave_out_is_said(so: str) -> None:
    assert any(so in fact.so for fact in FACTS if not fact.said)


@pytest.mark.parametrize("shown", dict.fromkeys(COMMANDS), ids=lambda shown: shown.words)
def test_a_command_can_be_typed(shown: Shown) -> None:
    program: Any = get_command(app)
    name, *words = shlex.split(shown.words)
    given = program.get_command(None, name).make_context(name, [*words, "--json"]).params
    assert given["as_json"]
    if (target := given.get("target")) is not None and not target.endswith("-run"):
        assert target in (*CONFIGS, RANDOM_T5, *(f"builtin:{each}" for each in BUILTINS))


def test_a_screen_is_short() -> None:
    for part in PARTS.values():
        assert 1 <= len(part.screens) <= 4
        assert all(screen.commands and screen.facts and len(screen.idea) < 420 for screen in part.screens)


def test_every_word_ends_without_a_full_stop() -> None:
    assert [fact for fact in FACTS if isinstance(fact, Fact) and fact.so.endswith(".")] == []


def test_examples_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr("loraft.tour.example_files._random_t5", lambda folder: made.append(folder.name))
    write_examples(tmp_path / "tour")
    write_examples(tmp_path / "tour")
    assert len(made) == 1
    assert (tmp_path / "tour" / "qlora.yaml").read_text().count("method: qlora\n") == 1
    assert all((tmp_path / "tour" / name / "config.json").is_file() for name in CONFIGS)


def test_held_out_reviews_judge_by_words_that_were_not_learned() -> None:
    learned, held_out = ({word for words in each.values() for word in words} for each in (LEARNED, HELD_OUT))
    assert learned.isdisjoint(held_out)
    rows = _reviews(HELD_OUT).splitlines()
    assert rows[0] == "text,label"
    assert len(set(rows)) == len(rows) == 1 + 2 * (4 * len(SUBJECTS) + 4)


def test_blanks_can_be_seen() -> None:
    assert spelt(" the\n") == "“␣the⏎”"


def test_shares_are_written_as_elsewhere() -> None:
    assert (percent(0.125), percent(-0.5, 0)) == ("12.5 %", "-50 %")

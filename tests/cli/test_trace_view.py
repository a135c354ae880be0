"""`loraft generate --trace`, `--layers` and `--no-kv-cache`, with real tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from loraft.cli.app import app
from loraft.cli.console import printable
from loraft.cli.views.trace_view import visible
from tests.tiny import save_tiny

WIDTH = 100


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies nothing but float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


def generate(*words: str, monkeypatch: pytest.MonkeyPatch | None = None) -> Any:
    if monkeypatch is not None:
        monkeypatch.setattr("loraft.cli.console.PIPE_WIDTH", WIDTH)
        monkeypatch.setenv("COLUMNS", str(WIDTH))
    arguments = ["generate", *words, "-p", "the order is late", "--max-new-tokens", "7"]
    return CliRunner().invoke(app, arguments, prog_name="loraft", catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_a_trace_shows_prompt_steps_and_ending_in_a_hundred_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(save_tiny(tmp_path))
    shown = generate(model, "--trace", "--layers", monkeypatch=monkeypatch).stdout
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    assert "prompt: " in shown
    assert "<|im_start|> 1" in shown
    assert "␣or 291" in shown
    assert "steps: greedy" in shown
    assert "what each layer would have said" in shown
    assert shown.rstrip().endswith("ended   the limit of 7 tokens")
    assert printable(generate(model).stdout) in shown


@pytest.mark.usefixtures("float32")
def test_the_rules_and_what_they_cut_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--temperature", "1.5", "--top-k", "3", "--top-p", "0.9"]
    shown = generate(str(save_tiny(tmp_path)), "--trace", *words, monkeypatch=monkeypatch).stdout
    assert "steps: sampled · temperature 1.5 · top k 3 · top p 0.9" in shown
    assert "→top-k" in shown
    assert "model → rules" in shown


@pytest.mark.usefixtures("float32")
def test_json_is_the_completion_with_its_trace(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path))
    plain = json.loads(generate(model, "--json").stdout)
    document = json.loads(generate(model, "--json", "--trace", "--layers").stdout)
    assert list(document) == [*plain, "trace"]
    assert document["token_ids"] == plain["token_ids"]
    steps = document["trace"]["steps"]
    assert [step["taken"]["id"] for step in steps] == plain["token_ids"]
    assert [len(step["fed"]) for step in steps] == [len(document["trace"]["prompt"]), 1, 1, 1, 1, 1, 1]
    assert [len(step["layers"]) for step in steps] == [3] * 7


@pytest.mark.usefixtures("float32")
def test_c36_both_ways_are_compared(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path))
    plain = json.loads(generate(model, "--json").stdout)
    document = json.loads(generate(model, "--json", "--no-kv-cache").stdout)
    assert list(document) == [*plain, "no_kv_cache"]
    assert document["token_ids"] == plain["token_ids"]
    compared = document["no_kv_cache"]
    assert compared["same_tokens"]
    assert compared["first_difference"] is None
    assert compared["with_cache"]["prefill_ms"] > 0
    assert compared["without_cache"]["decode_tokens_per_second"] == document["decode_tokens_per_second"]
    told = generate(model, "--no-kv-cache", "--temperature", "1").stderr
    assert "without the KV cache" in told
    assert "the same tokens both ways" in told


@pytest.mark.slow_after(1)
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("model_type", ["t5", "bart", "marian"])
def test_an_encoder_decoder_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str) -> None:
    model = str(save_tiny(tmp_path, model_type))
    shown = generate(model, "--trace", "--no-kv-cache", monkeypatch=monkeypatch).stdout
    assert "read once by the encoder" in shown
    assert "attends to, %" in shown
    assert "all 2" in shown


def test_beams_that_were_saved_are_not_traced_and_that_is_said(tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    saved = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**saved, "num_beams": 3, "min_length": 5}))
    done = generate(str(model), "--trace")
    assert "the 3 beams that generation_config.json asks for cannot be traced" in done.stderr
    assert "generation_config.json asks for min_length=5, which loraft does not do" in done.stderr
    asked = generate(str(model), "--trace", "--num-beams", "2")
    assert asked.exit_code == 2
    assert "--num-beams: beams cannot be traced" in asked.stderr


@pytest.mark.parametrize(
    ("text", "seen"),
    [(" the", "␣the"), ("\n\n", "⏎⏎"), ("\t", "⇥"), ("\xa0", "<U+00A0>"), ("\x1b[2J", "␛[2J"), ("", "∅")],
)
def test_blanks_are_seen(text: str, seen: str) -> None:
    assert visible(text) == seen

"""Encoder-decoders from the command line: trained, layers by stack, loaded by peft, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MBartTokenizer, NllbTokenizer

from tests.cli.running import Done, loraft, refused
from tests.tiny import save_tiny
from tests.training.building import pairs, write_rows
from tests.words import Wording

DEPTHS = {"encoder": 3, "decoder": 2}


def place_of(folder: Path, model_type: str = "t5", task: str = "seq2seq_lm") -> Path:
    """A folder with a tiny model, pairs and a config."""
    save_tiny(folder / "model", model_type)
    write_rows(folder / "train.jsonl", pairs())
    (folder / "c.yaml").write_text(
        f"task: {task}\n"
        "model: {name_or_path: model, dtype: float32}\n"
        "data: {train: train.jsonl, eval: 0.2, max_length: 128}\n"
        "lora: {r: 4}\n"
        "training: {max_steps: 4, logging_steps: 2, output_dir: run, learning_rate: 0.01}\n"
        "generation: {max_new_tokens: 8, temperature: 0}\n"
    )
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return place_of(tmp_path)


def train(place: Path, *words: str) -> Done:
    done = loraft("train", "c.yaml", *words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "names", "indices", "pattern"),
    [
        ("all", "short", None, None),
        ("last:1", "full", None, None),
        ("[1]", "short", [1], "block"),
        ("{decoder: all}", "short", [0, 1], "decoder.block"),
        ("{encoder: last:2}", "short", [1, 2], "encoder.block"),
        ("{encoder: last:2, decoder: all}", "full", None, None),
    ],
)
def test_an_adapter_of_chosen_stacks_means_the_same_in_plain_peft(
    place: Path, layers: str, names: str, indices: list[int] | None, pattern: str | None
) -> None:
    """Plain peft finds the same modules by the names, layers and pattern that were written down, and says the same."""
    trained = train(place, f"lora.layers={layers}")
    assert json.loads(trained.stdout)["saved"] == "run/adapter"
    written = json.loads((place / "run" / "adapter" / "adapter_config.json").read_text())
    assert (written["layers_to_transform"], written["layers_pattern"]) == (indices, pattern)
    assert (max(map(len, written["target_modules"])) < 10) == (names == "short")
    assert written["task_type"] == "SEQ_2_SEQ_LM"
    base = AutoModelForSeq2SeqLM.from_pretrained(place / "model").eval()
    ids = torch.tensor([[5, 9, 200, 17, 33]])
    with torch.no_grad():
        alone = base(input_ids=ids, decoder_input_ids=ids).logits
        model = PeftModel.from_pretrained(base, str(place / "run" / "adapter")).eval()
        adapted = model(input_ids=ids, decoder_input_ids=ids).logits
    assert not torch.equal(adapted, alone)
    answer = json.loads(loraft("generate", "run", "-p", "the order", "--json", cwd=place).stdout)
    tokenizer = AutoTokenizer.from_pretrained(place / "run" / "adapter")
    with torch.inference_mode():
        said = model.generate(**tokenizer("the order", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    ids_said = [token for token in said[0, 1:].tolist() if token != tokenizer.eos_token_id]
    assert ids_said == answer["token_ids"][: len(ids_said)]


def test_check_tells_both_stacks(place: Path) -> None:
    told = json.loads(loraft("check", "c.yaml", "lora.layers={encoder: last:1}", "--json", cwd=place).stdout)
    assert (told["model"]["encoder_layers"], told["model"]["decoder_layers"]) == (3, 2)
    assert told["adapter"]["layers"] == {"encoder": [2]}


def test_c40_float16_is_refused_with_the_reason(place: Path) -> None:
    """C40: T5's activations overflow in float16; training and generating say so before a weight is loaded."""
    for words in (("train", "c.yaml", "model.dtype=float16"), ("check", "c.yaml", "model.dtype=float16")):
        assert "t5 is not stable in float16: its activations overflow" in refused(loraft(*words, cwd=place))
    assert not (place / "run").exists()
    told = refused(loraft("generate", "model", "-p", "the order", "--dtype", "float16", cwd=place))
    assert "t5 is not stable in float16: its activations overflow" in told


@pytest.mark.parametrize(
    "words",
    [
        ["lora.layers={encoder: last:4}"],
        ["lora.layers={encoder: all}", "lora.target_modules=[EncDecAttention.q]"],
        ["lora.layers={middle: all}"],
        ["data.on_overlength=split"],
        ["data.packing=fill", "data.on_overlength=error", "data.max_target_length=2"],
        ["task=causal_lm"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_is_refused_and_nothing_is_written(place: Path, words: list[str], wording: Wording) -> None:
    told = [refused(loraft(verb, "c.yaml", *words, cwd=place)) for verb in ("check", "train")]
    wording(told[0])
    assert told[0] == told[1]
    assert not (place / "run").exists()


def test_a_decoder_learns_no_pairs_and_has_no_encoder(tmp_path: Path) -> None:
    place_of(tmp_path, "llama")
    told = refused(loraft("train", "c.yaml", cwd=tmp_path))
    assert "'llama' is a decoder, and task: seq2seq_lm or seq2seq_preference needs an encoder-decoder" in told
    told = refused(loraft("train", "c.yaml", "task=causal_lm", "lora.layers={encoder: all}", cwd=tmp_path))
    assert "llama has no such stack" in told


BAD_ROWS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a missing language": ({"translation": {"en": "the order", "fr": "x"}}, ["t.jsonl:2", "xx"]),
    "an empty target": ({"translation": {"en": "the order", "xx": ""}}, ["t.jsonl:2", "translation.xx"]),
    "a number": ({"translation": {"en": "the order", "xx": 3}}, ["t.jsonl:2", "translation.xx"]),
    "no mapping": ({"translation": "the order"}, ["t.jsonl:2", "translation"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_pair_is_named_with_line_and_field(place: Path, bad: str) -> None:
    row, messages = BAD_ROWS[bad]
    good = [{"translation": {"en": one["source"], "xx": one["target"]}} for one in pairs()]
    write_rows(place / "t.jsonl", [good[0], row, *good[1:]])
    words = ["c.yaml", "data.train=t.jsonl", "data.source_lang=en", "data.target_lang=xx"]
    told = refused(loraft("train", *words, cwd=place))
    assert all(message in told for message in messages), told
    skipped = loraft("train", *words, "data.on_bad_row=skip", cwd=place)
    assert skipped.returncode == 0, skipped.stderr
    assert "1 bad row is skipped" in skipped.stderr


@pytest.mark.slow
def test_long_targets_are_cut_where_that_is_asked_for(place: Path) -> None:
    words = ["data.max_target_length=5", "data.on_overlength=truncate"]
    told = json.loads(loraft("check", "c.yaml", *words, "--json", cwd=place).stdout)
    assert told["data"]["sources"][0]["done"] == "truncated"
    train(place, *words)


@pytest.mark.slow
def test_sample_prompts_are_answered_as_generate_answers(place: Path) -> None:
    train(place, "training.sample_prompts=[the order]", "data.source_prefix='turn: '")
    samples = [json.loads(line) for line in (place / "run" / "samples.jsonl").read_text().splitlines()]
    answer = json.loads(loraft("generate", "run", "-p", "the order", "--json", cwd=place).stdout)
    assert samples[-1]["answer"] == answer["completion"]


def nllb() -> NllbTokenizer:
    """A tokenizer of letters that writes the language before each text."""
    letters = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    codes = ["eng_Latn", "fra_Latn"]
    return NllbTokenizer({letter: i for i, letter in enumerate(letters)}, [], extra_special_tokens=codes)


def mbart() -> MBartTokenizer:
    """A tokenizer of letters that writes the language behind each text."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    return MBartTokenizer([(word, -1.0) for word in words])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "made_by", "codes"),
    [("m2m_100", nllb, ("eng_Latn", "fra_Latn")), ("mbart", mbart, ("en_XX", "fr_XX"))],
)
def test_the_language_of_an_answer_is_the_one_that_was_trained(
    tmp_path: Path, model_type: str, made_by: Callable[[], Any], codes: tuple[str, str]
) -> None:
    """NLLB's answers begin with their language, and mBART's decoder starts from it: saved, and used again."""
    place, tokenizer = place_of(tmp_path, model_type), made_by()
    for file in (place / "model").glob("*token*"):
        file.unlink()
    tokenizer.save_pretrained(place / "model")
    languages = [f"data.source_lang={codes[0]}", f"data.target_lang={codes[1]}"]
    told = refused(loraft("train", "c.yaml", cwd=place))
    assert "data.source_lang" in told
    told = refused(loraft("train", "c.yaml", languages[0], "data.target_lang=fr_La", cwd=place))
    assert "'fr_La' is none of the" in told
    assert codes[1] in told
    train(place, *languages, "training.sample_prompts=[the order]")
    saved = json.loads((place / "run" / "adapter" / "generation_config.json").read_text())
    code = tokenizer.convert_tokens_to_ids(codes[1])
    begins = {"m2m_100": "forced_bos_token_id", "mbart": "decoder_start_token_id"}[model_type]
    assert saved[begins] == code
    assert loraft("generate", "run", "-p", "the order", cwd=place).returncode == 0

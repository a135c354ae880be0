"""Encoder-decoders as targets: asked as in training, answering as transformers does with what was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, M2M100Tokenizer, MBartTokenizer

from loraft.adapters.resolve_target import resolve_target
from loraft.config.sections import ModelSection
from loraft.errors import DataError, ModelError
from loraft.evaluation.open_model import RequestedModel
from loraft.inference.engine import complete_batch
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import BASE, Session, Speaker, open_session
from loraft.models.load_model import load_tokenizer
from loraft.models.registry import TWO_STACKS
from loraft.rows.formats import Message
from tests.inference.voices import base_in, pair_adapter_in
from tests.tiny import tiny_model
from tests.tokenization.test_seq2seq_rows import MULTILINGUAL

TYPES = tuple(TWO_STACKS)
TEXTS = ("the customer said that", "order", "late is the text and the answer")
BOTH = {"layers": {"encoder": "last:2", "decoder": "all"}}


def answers(session: Session, voice: Speaker, texts: tuple[str, ...] = TEXTS, **options: Any) -> list[list[int]]:
    prompts = [voice.renderer.prompt_ids(voice.conversation(text)) for text in texts]
    with session.speaking(voice) as model:
        found = complete_batch(model, voice.tokenizer, prompts, **voice.settings(GenerationRequest(**options)))
    return [list(answer.token_ids) for answer in found]


def of_peft(base: Path, adapter: Path, texts: tuple[str, ...] = TEXTS, prefix: str = "") -> list[list[int]]:
    """What transformers' generate gives for PEFT's three lines with the defaults that were saved beside the adapter."""
    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), adapter).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(adapter)
    record = json.loads((adapter / "loraft.json").read_text())
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang = record["source_lang"]
    defaults = GenerationConfig.from_pretrained(adapter)
    found = []
    for text in texts:
        ids = tokenizer(prefix + text, return_tensors="pt")
        said = model.generate(**ids, generation_config=defaults)[0, 1:].tolist()
        found.append(said[:-1] if said[-1] in (defaults.eos_token_id or ()) else said)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own use of it
@pytest.mark.parametrize("model_type", TYPES)
def test_an_adapter_answers_as_peft_and_transformers_do(tmp_path: Path, model_type: str) -> None:
    base = base_in(tmp_path / "base", model_type)
    adapter = pair_adapter_in(tmp_path / "adapter", base, prefix="say: ", **BOTH)
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    session = open_session(ModelRequest(str(adapter)))
    voice = session.voice()
    assert voice.renderer.prompt_ids([Message("user", "order")]) == voice.tokenizer("say: order")["input_ids"]
    said = answers(session, voice)
    assert said == of_peft(base, adapter, prefix="say: ")
    assert said != answers(session, session.voice(BASE)), "the adapter has an effect"


def multilingual_base(folder: Path, kind: str) -> tuple[Path, str, str]:
    """A tiny base with a multilingual tokenizer; its languages."""
    made, source, target, _ = MULTILINGUAL[kind]
    folder.mkdir()
    tokenizer = made(folder)
    tokenizer.save_pretrained(folder)
    model_type = "mbart" if isinstance(tokenizer, MBartTokenizer) else "m2m_100"
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = tiny_model(model_type, **special, decoder_start_token_id=tokenizer.eos_token_id, bos_token_id=0)
    model.save_pretrained(folder)
    return folder, source, target


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own use of it
@pytest.mark.parametrize("kind", ["nllb", "mbart25", "m2m"])
def test_answers_begin_in_the_language_of_the_target(tmp_path: Path, kind: str) -> None:
    """NLLB and M2M100 must say it first; mBART-25 begins from it, as its targets do in training."""
    base, source, target = multilingual_base(tmp_path / "base", kind)
    adapter = pair_adapter_in(tmp_path / "adapter", base, languages=(source, target))
    saved = json.loads((adapter / "generation_config.json").read_text())
    code = open_session(ModelRequest(str(adapter))).voice().renderer.target_ids([""])[0][0 if kind != "mbart25" else -1]  # type: ignore[union-attr]
    begins = {"decoder_start_token_id": code, "forced_bos_token_id": None}
    if kind != "mbart25":
        begins = {"decoder_start_token_id": 2, "forced_bos_token_id": code}
    assert {key: saved[key] for key in begins} == begins
    session = open_session(ModelRequest(str(adapter)))
    said = answers(session, session.voice(), ("hello", "the cat"))
    assert said == of_peft(base, adapter, ("hello", "the cat"))
    if kind != "mbart25":
        assert {ids[0] for ids in said} == {code}
    texts = [session.voice().tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    assert not any(target in text for text in texts)


@pytest.mark.slow
def test_a_base_that_knows_languages_is_asked_in_those_that_are_said(tmp_path: Path) -> None:
    base, source, target = multilingual_base(tmp_path / "base", "nllb")
    with pytest.raises(DataError, match=r"data\.source_lang: is not set"):
        open_session(ModelRequest(str(base)))
    with pytest.raises(DataError, match=r"data\.target_lang: 'fra_Latin' is none") as caught:
        open_session(ModelRequest(str(base), source_lang=source, target_lang="fra_Latin"))
    assert target in (caught.value.problems[0].remedy or "")
    session = open_session(ModelRequest(str(base), dtype="float32", source_lang=source, target_lang=target))
    voice = session.voice()
    assert voice.tokenizer.convert_ids_to_tokens(voice.renderer.prompt_ids([Message("user", "hello")]))[0] == source
    other = open_session(ModelRequest(str(base), dtype="float32", source_lang=source, target_lang="spa_Latn"))
    first = {answers(each, each.voice(), ("hello",))[0][0] for each in (session, other)}
    assert first == set(voice.tokenizer.convert_tokens_to_ids([target, "spa_Latn"]))


def test_a_slow_tokenizer_will_do_for_an_encoder_decoder(tmp_path: Path) -> None:
    base, *_ = multilingual_base(tmp_path / "base", "m2m")
    tokenizer = load_tokenizer(ModelSection(name_or_path=str(base)), "encoder_decoder")
    assert isinstance(tokenizer, M2M100Tokenizer)
    assert not tokenizer.is_fast


def test_a_base_without_generation_config_answers_as_its_config_says(tmp_path: Path) -> None:
    """Older BARTs say in config.json alone that an answer begins with one token and ends with another."""
    base = base_in(tmp_path / "base", "bart")
    (base / "generation_config.json").unlink()
    written = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(written | {"forced_bos_token_id": 41, "forced_eos_token_id": 2}))
    session = open_session(ModelRequest(str(base), dtype="float32"))
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    voice = session.voice()
    said = answers(session, voice, max_new_tokens=6)
    for text, ids in zip(TEXTS, said, strict=True):
        expected = model.generate(torch.tensor([voice.tokenizer(text)["input_ids"]]), max_new_tokens=6)[0, 1:].tolist()
        assert [*ids, 2] == expected
        assert (ids[0], len(ids)) == (41, 5)


@pytest.mark.slow
def test_the_base_beside_an_adapter_is_asked_as_the_adapter_is(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", "t5")
    adapter = pair_adapter_in(tmp_path / "adapter", base, prefix="say: ")
    beside = open_session(ModelRequest(str(adapter))).voice(BASE)
    alone = open_session(ModelRequest(str(base))).voice()
    assert beside.renderer.prompt_ids([Message("user", "order")]) == beside.tokenizer("say: order")["input_ids"]
    assert alone.renderer.prompt_ids([Message("user", "order")]) == alone.tokenizer("order")["input_ids"]


def test_the_language_of_rows_is_that_of_training_or_the_one_that_is_said(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", "t5")
    adapter = pair_adapter_in(tmp_path / "adapter", base, languages=("en", "xx"))
    assert RequestedModel(ModelRequest(str(adapter))).source_language == "en"
    assert RequestedModel(ModelRequest(str(adapter), source_lang="xx")).source_language == "xx"
    assert RequestedModel(ModelRequest(str(base))).source_language is None
    assert resolve_target(str(adapter)).metadata.task == "seq2seq_lm"
    session = open_session(ModelRequest(str(base), source_lang="en"))
    assert any("no codes of languages" in note for note in session.notes)


def test_a_decoder_has_no_source_language(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="source_lang: model type 'llama' goes on with its prompt"):
        open_session(ModelRequest(str(base_in(tmp_path / "llama")), source_lang="en"))


def test_a_damaged_record_says_nothing(tmp_path: Path) -> None:
    """Values of other types are nobody's word: the adapter is asked without prefix."""
    adapter = pair_adapter_in(tmp_path / "adapter", base_in(tmp_path / "t5", "t5"), prefix="say: ")
    copied = shutil.copytree(adapter, tmp_path / "copy")
    record = json.loads((copied / "loraft.json").read_text())
    (copied / "loraft.json").write_text(json.dumps(record | {"source_prefix": 7, "source_lang": ["en"]}))
    sources = resolve_target(str(copied)).metadata.sources
    assert (sources.prefix, sources.source_lang) == ("", None)

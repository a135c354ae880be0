"""Sources and targets as tokens: prefix, end of text, codes of languages, and what is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import (
    AutoTokenizer,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerBase,
    T5Tokenizer,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from loraft.config.sections import DataSection
from loraft.errors import DataError
from loraft.rows.formats import Message, Seq2SeqRecord
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer, truncate_keep_eos
from tests.tiny import tiny_tokenizer

WORDS = ("▁hello", "▁the", "▁cat", "▁bonjour", "▁le", "▁chat", "▁translate", ":")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
M2M_LANGUAGES = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]


def unigrams() -> list[tuple[str, float]]:
    return [*((token, 0.0) for token in SPECIAL), *((word, -float(rank)) for rank, word in enumerate(WORDS))]


def nllb(_: Path) -> PreTrainedTokenizerBase:
    return NllbTokenizer(vocab={token: number for number, (token, _) in enumerate(unigrams())}, merges=[])


def mbart50(_: Path) -> PreTrainedTokenizerBase:
    return MBart50Tokenizer(vocab=unigrams())


def mbart25(_: Path) -> PreTrainedTokenizerBase:
    return MBartTokenizer(vocab=unigrams())


def m2m(folder: Path) -> PreTrainedTokenizerBase:
    """As M2M100 has it: SentencePiece pieces, a vocabulary beside them, and languages among the special tokens."""
    (folder / "text").write_text("hello the cat\nbonjour le chat\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), vocab_size=20, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))
    names = [pieces.id_to_piece(number) for number in range(pieces.get_piece_size())]
    vocabulary = [*SPECIAL, *(name for name in names if name not in SPECIAL)]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(vocabulary)}))
    return M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "m.model"), extra_special_tokens=list(M2M_LANGUAGES)
    )  # fmt: skip


MULTILINGUAL: dict[str, Any] = {
    "nllb": (nllb, "deu_Latn", "fra_Latn", "begins"),
    "mbart50": (mbart50, "de_DE", "fr_XX", "begins"),
    "mbart25": (mbart25, "de_DE", "fr_XX", "ends"),
    "m2m": (m2m, "de", "fr", "begins"),
}


@pytest.fixture(params=MULTILINGUAL)
def multilingual(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedTokenizerBase, str, str, str]:
    """A tokenizer as it comes back from its files, two languages, and where it writes them."""
    made, source, target, where = MULTILINGUAL[request.param]
    made(tmp_path).save_pretrained(tmp_path / "saved")
    return AutoTokenizer.from_pretrained(tmp_path / "saved"), source, target, where


def written(code: str) -> str:
    """How a tokenizer writes a language."""
    return f"__{code}__" if len(code) == 2 else code


def test_source_and_target_have_the_code_of_their_language(
    multilingual: tuple[PreTrainedTokenizerBase, str, str, str],
) -> None:
    tokenizer, source, target, where = multilingual
    renderer = Seq2SeqRenderer(tokenizer, source_lang=source, target_lang=target)
    before: Any = (tokenizer.src_lang, tokenizer.tgt_lang)
    example = renderer.examples([Seq2SeqRecord("hello", "bonjour")], ["a:1"])[0]
    for ids, code in ((example.input_ids, source), (example.labels, target)):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        marks = [tokens[0], tokens[-1]] if where == "begins" else [tokens[-1], tokens[-2]]
        assert marks == [written(code), "</s>"], tokens
        assert len(tokens) > 2
    assert renderer.prompt_ids([Message("user", "hello")]) == example.input_ids
    assert renderer.target_ids(["bonjour"])[0] == example.labels
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == before, "the tokenizer is left as it was"


def test_an_answer_begins_with_the_code_where_targets_do(
    multilingual: tuple[PreTrainedTokenizerBase, str, str, str],
) -> None:
    """mBART-25 writes it behind the text: its decoder begins from it, and it is no first word."""
    tokenizer, source, target, where = multilingual
    renderer = Seq2SeqRenderer(tokenizer, source_lang=source, target_lang=target)
    code = tokenizer.convert_tokens_to_ids(written(target))
    assert renderer.knows_languages
    assert renderer.forced_bos_id == (code if where == "begins" else None)
    assert written(target) not in tokenizer.decode(renderer.target_ids(["bonjour"])[0], skip_special_tokens=True)


def test_what_is_recorded_makes_the_same_renderer(multilingual: tuple[PreTrainedTokenizerBase, str, str, str]) -> None:
    tokenizer, source, target, _ = multilingual
    renderer = Seq2SeqRenderer(tokenizer, prefix="x ", source_lang=source, target_lang=target)
    assert renderer.recorded == {"source_prefix": "x ", "source_lang": source, "target_lang": target}


@pytest.mark.parametrize("key", ["source_lang", "target_lang"])
def test_a_language_that_is_not_there_names_near_ones(
    multilingual: tuple[PreTrainedTokenizerBase, str, str, str], key: str
) -> None:
    tokenizer, source, target, _ = multilingual
    right = {"source_lang": source, "target_lang": target}
    with pytest.raises(DataError, match=rf"data\.{key}.*is not set"):
        Seq2SeqRenderer(tokenizer, **(right | {key: None}))
    with pytest.raises(DataError, match="is none of the") as caught:
        Seq2SeqRenderer(tokenizer, **(right | {key: f"{source}x"}))
    assert source in (caught.value.problems[0].remedy or "")


@pytest.mark.parametrize(("name", "near"), [("nllb", "eng_Latn"), ("mbart50", "en_XX"), ("mbart25", "en_XX")])
def test_a_language_by_its_short_name_is_told_its_code(name: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Seq2SeqRenderer(MULTILINGUAL[name][0](tmp_path), source_lang="en", target_lang="fr")
    assert caught.value.problems[0].remedy == f"Codes look like {near}."


def t5() -> PreTrainedTokenizerBase:
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *unigrams()[4:]], extra_ids=0)


def test_a_prefix_stands_before_every_source_and_every_text_is_ended() -> None:
    tokenizer = t5()
    renderer = Seq2SeqRenderer(tokenizer, prefix="translate: ", source_lang="en", target_lang="fr")
    example = renderer.examples([renderer.render(Seq2SeqRecord("hello", "bonjour"))], ["a:1"])[0]
    assert tokenizer.convert_ids_to_tokens(example.input_ids) == ["▁translate", ":", "▁hello", "</s>"]
    assert tokenizer.convert_ids_to_tokens(example.labels) == ["▁bonjour", "</s>"]
    assert renderer.prompt_ids([Message("user", "hello")]) == example.input_ids
    assert not renderer.knows_languages
    assert renderer.forced_bos_id is None
    assert renderer.recorded["source_lang"] == "en", "rows of translations are found by it"
    assert renderer.stop_ids == (tokenizer.eos_token_id,)


def test_c1_a_target_is_ended_where_the_tokenizer_ends_none() -> None:
    """Without an end in the labels no answer would learn to stop."""
    tokenizer = tiny_tokenizer()
    example = Seq2SeqRenderer(tokenizer).examples([Seq2SeqRecord("the order", "is late")], ["a:1"])[0]
    assert example.labels == [*tokenizer("is late")["input_ids"], tokenizer.eos_token_id]
    assert example.trained == len(example.labels)


def limits(**values: Any) -> DataSection:
    return DataSection.model_validate({"train": "t.jsonl", **values})


@pytest.mark.parametrize("name", MULTILINGUAL)
def test_a_source_that_is_cut_keeps_what_closes_it(name: str, tmp_path: Path) -> None:
    made, source, target, where = MULTILINGUAL[name]
    tokenizer = made(tmp_path)
    renderer = Seq2SeqRenderer(tokenizer, source_lang=source, target_lang=target)
    pair = Seq2SeqRecord("hello the cat " * 9, "bonjour le chat " * 9)
    example = renderer.examples([pair], ["a:1"])[0]
    [cut] = renderer.cut(pair, example, limits(max_length=8, max_target_length=5), "truncate")
    tokens = tokenizer.convert_ids_to_tokens(cut.input_ids)
    assert len(tokens) == 8
    closing = ["</s>"] if where == "begins" else ["</s>", written(source)]
    assert tokens[-len(closing) :] == closing
    assert cut.labels == example.labels[:5], "a target that is cut does not end there"


def test_closed_keeps_a_short_text_as_it_is() -> None:
    tokenizer = t5()
    ids = tokenizer("hello the cat")["input_ids"]
    assert truncate_keep_eos(ids, 4, tokenizer) == ids
    assert truncate_keep_eos(ids, 3, tokenizer) == [*ids[:2], tokenizer.eos_token_id]
    assert truncate_keep_eos(ids, 1, tokenizer) == [tokenizer.eos_token_id]


def test_what_is_too_long_is_told_by_its_key() -> None:
    tokenizer = t5()
    renderer = Seq2SeqRenderer(tokenizer)
    example = renderer.examples([Seq2SeqRecord("hello the cat", "bonjour le chat")], ["a:1"])[0]
    assert renderer.too_long(example, limits(max_length=4)) is None
    assert "source of 4 tokens, more than data.max_length 3" in (renderer.too_long(example, limits(max_length=3)) or "")
    too_long = renderer.too_long(example, limits(max_length=4, max_target_length=3))
    assert "target of 4 tokens, more than data.max_target_length 3" in (too_long or "")

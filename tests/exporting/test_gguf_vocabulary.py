"""llama.cpp splits text as the tokenizer does, by the rule that the file names; other tokenizers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from loraft import api
from loraft.errors import ModelError
from loraft.exporting.gguf_vocabulary import vocabulary_of
from loraft.models.gguf_import import RULES
from tests.exporting.llama_cpp import LlamaCpp
from tests.tiny import mostly_slow, save_tiny
from tests.words import Wording

TEXTS = (
    "Hello, wörld!  It's 12 345:\n\n\tdef f(x): return x  # 漢字 😀", "  leading and trailing  ",
    "I'LL we'Ve 1234567 a1b2", "\n\n\n x\r\n\r\n y \t\t z", "user: <|im_end|> hi <|im_start|>user",
    "camelCase HTTPServer XMLHttp AaBb/cc//dd", "日本語テキスト と 한국어", "emoji 👩‍👩‍👧‍👦 🏳️‍🌈!", "don't can't '' ' s",
)  # fmt: skip
WORDS_FIRST = ("llama-bpe", "tekken")
NAMED = ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "gpt-4o")


def bytes_bpe(rule: pre_tokenizers.PreTokenizer, *, words_first: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts, which splits by a rule."""
    made = Tokenizer(models.BPE(ignore_merges=words_first))
    made.pre_tokenizer, made.decoder = rule, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|pad|>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )


@pytest.mark.parametrize("name", mostly_slow(NAMED, "smollm"))
def test_a_text_has_the_same_tokens(tmp_path: Path, name: str) -> None:
    tokenizer = bytes_bpe(RULES[name], words_first=name in WORDS_FIRST)
    model = save_tiny(tmp_path / "model", vocab_size=len(tokenizer) + 7)
    tokenizer.save_pretrained(model)
    api.export(str(model), tmp_path / "m.gguf")
    theirs = LlamaCpp(tmp_path / "m.gguf")
    assert [theirs.tokens(text) for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_the_name_is_that_of_the_rule() -> None:
    for name in NAMED:
        values, _ = vocabulary_of(bytes_bpe(RULES[name], words_first=name in WORDS_FIRST), 510, "model")
        assert values["tokenizer.ggml.pre"] == name


def test_a_rule_without_a_name_is_refused(wording: Wording) -> None:
    with pytest.raises(ModelError) as caught:
        vocabulary_of(bytes_bpe(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), RULES["gpt-2"]])), 510, "model")
    wording(str(caught.value))
